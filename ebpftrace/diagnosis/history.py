# SPDX-License-Identifier: Apache-2.0
"""What several readings of glibc's thread lists say together: who left them late, and how late.

One reading shows who has exited and is not joined *so far*.  Whoever stood there at an earlier reading and
does not any more was joined or detached in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ebpftrace.model import BookedThread, Books, BooksState


class Departed(NamedTuple):
    """Threads of one start routine that were seen exited and unjoined, and left the lists later."""

    number: int = 0
    longest: int = 0
    """ns from the first reading that showed one of them exited to the first that did not, at most."""
    exact: bool = True
    """Each was seen to leave; else several may have stood at one address for so long, in turn."""


@dataclass(frozen=True)
class _Standing:
    start_routine: int
    begun: int
    """ns of CLOCK_MONOTONIC: when the first reading that showed it exited began ..."""
    since: int
    """... and ended.  On a busy machine it may have exited in between."""


class History:
    """Readings of the thread lists of one process, oldest first."""

    def __init__(self) -> None:
        self._standing: dict[int, _Standing] = {}
        self._departed: dict[int, Departed] = {}
        self._first: dict[int, int] = {}
        self.readings = 0

    def add(self, books: Books, read_at: int, read_until: Optional[int] = None) -> None:
        """Take in one reading; one that is not to be trusted is left out.

        ``read_at``, ``read_until``: ns of CLOCK_MONOTONIC before and after it; None: it took no time.
        """
        read_until = read_at if read_until is None else read_until
        if books.state is not BooksState.READ:
            return
        now = {thread.descriptor: thread for thread in books.threads if is_unjoined(thread)}
        for descriptor, standing in list(self._standing.items()):
            thread = now.get(descriptor)
            if thread is None or thread.start_routine != standing.start_routine:
                self._depart(descriptor, read_until)
        for descriptor, thread in now.items():
            if descriptor not in self._standing:
                self._standing[descriptor] = _Standing(thread.start_routine, read_at, read_until)
        if not self.readings:
            self._first = self.standing()
        self.readings += 1

    def with_exits(self, exits: Iterable[tuple[int, int]]) -> History:
        """A copy that also knows when the threads exited that have these descriptors now: (descriptor, ns).

        glibc gives a descriptor with its stack to the next thread, so in a loop of create and join every
        reading shows the same address.  Where the thread that has it now exited after a reading that showed
        it exited, that reading was of an earlier thread, which was joined.
        """
        known = History()
        known.readings, known._first = self.readings, self._first
        known._standing, known._departed = dict(self._standing), dict(self._departed)
        for descriptor, exited_at in exits:
            standing = known._standing.get(descriptor)
            if standing is not None and exited_at > standing.since:
                known._depart(descriptor, exited_at, exact=False)
                known._standing[descriptor] = _Standing(standing.start_routine, exited_at, exited_at)
        return known

    def departed(self, start_routine: int) -> Departed:
        """Who left late, of the threads that began in this function."""
        return self._departed.get(start_routine, Departed())

    def since(self, descriptor: int) -> Optional[int]:
        """When the first reading that showed this thread exited had ended; None where none did."""
        standing = self._standing.get(descriptor)
        return standing.since if standing is not None else None

    def standing(self) -> dict[int, int]:
        """Exited, unjoined threads at the last reading, by start routine."""
        numbers: dict[int, int] = {}
        for standing in self._standing.values():
            numbers[standing.start_routine] = numbers.get(standing.start_routine, 0) + 1
        return numbers

    @property
    def first(self) -> Mapping[int, int]:
        """The same at the first reading."""
        return self._first

    def _depart(self, descriptor: int, at: int, exact: bool = True) -> None:
        standing = self._standing.pop(descriptor)
        number, longest, were_exact = self._departed.get(standing.start_routine, Departed())
        longest = max(longest, at - standing.begun)
        self._departed[standing.start_routine] = Departed(number + 1, longest, were_exact and exact)


def is_unjoined(thread: BookedThread) -> bool:
    """It has exited and waits for a join; a detached one does not."""
    return thread.exited and not thread.detached
