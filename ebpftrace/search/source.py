# SPDX-License-Identifier: Apache-2.0
"""All that a search reads of a process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Optional

from ebpftrace.model import Books, BooksState, Holder
from ebpftrace.process.books import read_books
from ebpftrace.process.malloc import find_heaps
from ebpftrace.process.maps import read_maps
from ebpftrace.process.memory import Memory
from ebpftrace.process.procfs import ProcessGone, read_small
from ebpftrace.search.areas import Areas
from ebpftrace.search.holders import Places
from ebpftrace.search.kernelheld import kernel_words
from ebpftrace.search.presence import Presence, Present
from ebpftrace.search.runs import Runs, no_runs
from ebpftrace.search.threads import Moment, Threads, Waiting
from ebpftrace.vmas import Vmas


class Source:
    """A running process.  A context manager.

    Opening it raises ``ProcessGone`` or ``CannotTrace``; so do ``vmas``, ``books``, ``moment``, ``waiting``.
    """

    def __init__(self, pid: int, groups: Sequence[int]) -> None:
        """``groups``: other thread groups of its address space."""
        self._pid = pid
        self._groups = [group for group in groups if group != pid]
        self._held = ExitStack()
        try:
            self._memory = self._held.enter_context(Memory(pid))
            self._presence = Presence(pid)
            self._held.callback(self._presence.close)
            self._threads = Threads(pid, self._groups)
            self._held.callback(self._threads.close)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._held.close()

    @property
    def no_registers(self) -> str:
        """Why registers can't be read; empty where they can."""
        return self._threads.no_registers

    def vmas(self) -> Vmas:
        """Its mappings now."""
        return read_maps(self._pid)

    def books(self, vmas: Vmas, earlier: Books) -> Books:
        """glibc's lists now; what was read earlier, where there are none."""
        if earlier.state is BooksState.ABSENT:
            return earlier
        return read_books(self._pid, vmas, self._memory, self._groups)

    def moment(self) -> Moment:
        """Its threads now."""
        return self._threads.look()

    def waiting(self, tids: Iterable[int]) -> dict[int, Waiting]:
        """Those of these threads that wait now; none where that can't be told."""
        return self._threads.waiting(tids)

    def kernel_words(self) -> list[tuple[str, int]]:
        """Words that the kernel holds for it now, by what for."""
        return kernel_words(self._pid)

    def present(self, areas: Areas, within: Runs) -> Present:
        """Which pages of the areas are in memory now."""
        present = self._presence.look(areas, within)
        # To the page map a page that only moves, or a guard made by madvise(2), may look like one in swap.
        return (
            present
            if not present.swapped.pieces or self._has_swapped()
            else present._replace(swapped=no_runs())
        )

    def _has_swapped(self) -> bool:
        """Some of it is in swap (proc(5), VmSwap); also where that can't be told."""
        try:
            status = read_small(f"/proc/{self._pid}/status")
        except OSError:
            return True
        size = status.partition(b"VmSwap:")[2].split(None, 1)[:1]
        return size != [b"0"]

    def read_into(self, buffer: memoryview, address: int) -> int:
        """Fill the buffer from ``address`` on; how many bytes of it, up to the first that can't be read."""
        return self._memory.read_into(buffer, address)

    def require_alive(self, vmas: Vmas) -> None:
        """Raise ``ProcessGone`` where the process has exited or runs another program; ``vmas`` were its."""
        for mappings in (vmas, None):
            if mappings is None:  # what could be read may have been unmapped
                mappings = self.vmas()
            readable = (start for start, kind in zip(mappings.starts, mappings.kinds) if kind.perms[0] == "r")
            if self._memory.read_partial(next(readable, 0), 1):
                return
        raise ProcessGone(self._pid)

    def named(
        self, holders: Iterable[Holder], vmas: Vmas, books: Books, moment: Moment
    ) -> dict[Holder, Holder]:
        """Holders that say only where a word lies -> the same with all that is known of the place."""
        holders = list(holders)
        if not holders:
            return {}
        heaps = find_heaps(vmas, self._memory) if "glibc" in books.libc else []
        places = Places(self._pid, vmas, books, heaps, moment.places)
        try:
            return places.named(holders)
        finally:
            places.close()
