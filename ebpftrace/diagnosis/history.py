# SPDX-License-Identifier: Apache-2.0
"""What several readings of glibc's thread lists show together: which threads were joined late, and how late.

One reading shows the threads that have exited and are not joined *so far*.  A thread that was among them at
an earlier reading and no longer is was joined or detached in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ebpftrace.model import ListedThread, ReadState, ThreadLists


class Departed(NamedTuple):
    """Threads with one start routine that a reading showed exited and unjoined, and a later one no longer."""

    number: int = 0
    longest: int = 0
    """The longest time, ns, from the first reading that showed such a thread to the first that did not."""
    exact: bool = True
    """Each was seen to leave; if not, several threads may have had the same descriptor, one after another."""


@dataclass(frozen=True)
class _Unjoined:
    start_routine: int
    begun: int
    """ns of CLOCK_MONOTONIC: when the first reading that showed it exited began."""
    since: int
    """When that reading ended.  On a busy machine the thread may have exited during the reading."""


class History:
    """Readings of the thread lists of one process, oldest first."""

    def __init__(self) -> None:
        self._unjoined: dict[int, _Unjoined] = {}
        self._departed: dict[int, Departed] = {}
        self._first: dict[int, int] = {}
        self.readings = 0

    def add(self, thread_lists: ThreadLists, read_at: int, read_until: Optional[int] = None) -> None:
        """Add one reading, unless the lists were not READ.

        ``read_at`` and ``read_until`` are ns of CLOCK_MONOTONIC before and after it; without the latter, the
        reading took no time.
        """
        read_until = read_at if read_until is None else read_until
        if thread_lists.state is not ReadState.READ:
            return
        now = {thread.descriptor: thread for thread in thread_lists.threads if is_unjoined(thread)}
        for descriptor, unjoined in list(self._unjoined.items()):
            thread = now.get(descriptor)
            if thread is None or thread.start_routine != unjoined.start_routine:
                self._depart(descriptor, read_until)
        for descriptor, thread in now.items():
            if descriptor not in self._unjoined:
                self._unjoined[descriptor] = _Unjoined(thread.start_routine, read_at, read_until)
        if not self.readings:
            self._first = self.unjoined()
        self.readings += 1

    def with_exits(self, exits: Iterable[tuple[int, int]]) -> History:
        """Return a copy that also knows ``exits``: descriptors of listed threads with exit times, ns.

        glibc reuses a descriptor, with its stack, for the next thread, so in a loop of create and join every
        reading shows the same address.  If the thread that has the descriptor now exited after a reading that
        showed an exited one, that reading showed an earlier thread, which was joined.
        """
        known = History()
        known.readings, known._first = self.readings, self._first
        known._unjoined, known._departed = dict(self._unjoined), dict(self._departed)
        for descriptor, exited_at in exits:
            unjoined = known._unjoined.get(descriptor)
            if unjoined is not None and exited_at > unjoined.since:
                known._depart(descriptor, exited_at, exact=False)
                known._unjoined[descriptor] = _Unjoined(unjoined.start_routine, exited_at, exited_at)
        return known

    def departed(self, start_routine: int) -> Departed:
        """The threads with this start routine that left the lists after they had been seen there."""
        return self._departed.get(start_routine, Departed())

    def since(self, descriptor: int) -> Optional[int]:
        """When the first reading that showed this thread exited had ended; None if there is none."""
        unjoined = self._unjoined.get(descriptor)
        return unjoined.since if unjoined is not None else None

    def unjoined(self) -> dict[int, int]:
        """The number of exited, unjoined threads at the last reading, by start routine."""
        numbers: dict[int, int] = {}
        for unjoined in self._unjoined.values():
            numbers[unjoined.start_routine] = numbers.get(unjoined.start_routine, 0) + 1
        return numbers

    @property
    def first(self) -> Mapping[int, int]:
        """As ``unjoined``, at the first reading."""
        return self._first

    def _depart(self, descriptor: int, at: int, exact: bool = True) -> None:
        unjoined = self._unjoined.pop(descriptor)
        number, longest, were_exact = self._departed.get(unjoined.start_routine, Departed())
        longest = max(longest, at - unjoined.begun)
        self._departed[unjoined.start_routine] = Departed(number + 1, longest, were_exact and exact)


def is_unjoined(thread: ListedThread) -> bool:
    """Whether the thread has exited and still has to be joined; a detached one need not be."""
    return thread.exited and not thread.detached
