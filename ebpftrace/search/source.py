# SPDX-License-Identifier: Apache-2.0
"""All that a search reads from a process: its memory, and words that the kernel stores for it.

epoll stores a word with each file (epoll_ctl(2)), a timer stores one for its signal (timer_create(2)) and
returns it later, so that it need not be in the memory; /proc shows both (proc(5), fdinfo and timers).  The
words in io_uring requests that are in flight are not visible.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress

from ebpftrace.model import Holder, ReadState, ThreadLists
from ebpftrace.nptl import read_thread_lists
from ebpftrace.procfs.access import ProcessGone, read_small
from ebpftrace.procfs.malloc import find_heaps
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.memory import Memory
from ebpftrace.search.areas import Areas
from ebpftrace.search.holders import Places
from ebpftrace.search.presence import Presence, Present
from ebpftrace.search.runs import Runs, no_runs
from ebpftrace.search.threads import Moment, Threads, Waiting
from ebpftrace.vmas import Vmas

_EPOLL = "anon_inode:[eventpoll]"
_MAX_FILES = 1 << 16
_MAX_WORDS = 1 << 17


class Source:
    """A running process, as a context manager.

    Opening it raises ``ProcessGone`` or ``CannotTrace``; so do ``vmas``, ``thread_lists``, ``moment`` and
    ``waiting``.
    """

    def __init__(self, pid: int, groups: Sequence[int]) -> None:
        """``groups`` are other thread groups of its address space."""
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

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def no_registers(self) -> str:
        """Why registers can't be read; empty if they can."""
        return self._threads.no_registers

    def vmas(self) -> Vmas:
        """Its mappings now."""
        return read_maps(self._pid)

    def thread_lists(self, vmas: Vmas, earlier: ThreadLists) -> ThreadLists:
        """glibc's lists now; the earlier reading if the process has none."""
        if earlier.state is ReadState.ABSENT:
            return earlier
        return read_thread_lists(self._pid, vmas, self._memory, self._groups, earlier)

    def moment(self) -> Moment:
        """Its threads now."""
        return self._threads.read_now()

    def waiting(self, tids: Iterable[int]) -> dict[int, Waiting]:
        """Those of these threads that wait now; none if registers can't be read."""
        return self._threads.waiting(tids)

    def kernel_words(self) -> list[tuple[str, int]]:
        """Words that the kernel stores for it now, each with ``timer`` or ``epoll``."""
        return kernel_words(self._pid)

    def present(self, areas: Areas, within: Runs) -> Present:
        """Which pages of the areas are in memory now."""
        present = self._presence.read_now(areas, within)
        # In the page map, a page under migration or a guard made by madvise(2) may appear as one in swap.
        return (
            present
            if not present.swapped.pieces or self._has_swapped()
            else present._replace(swapped=no_runs())
        )

    def _has_swapped(self) -> bool:
        """Whether any of it is in swap (proc(5), VmSwap); True if that can't be read."""
        try:
            status = read_small(f"/proc/{self._pid}/status")
        except OSError:
            return True
        size = status.partition(b"VmSwap:")[2].split(None, 1)[:1]
        return size != [b"0"]

    def read_into(self, buffer: memoryview, address: int) -> int:
        """Fill the buffer from ``address``, up to the first byte that is not readable; returns the count."""
        return self._memory.read_into(buffer, address)

    def require_alive(self, vmas: Vmas) -> None:
        """Raise ``ProcessGone`` if the process, which had ``vmas``, has exited or runs another program."""
        for mappings in (vmas, None):
            if mappings is None:  # the readable mappings may have been unmapped
                mappings = self.vmas()
            readable = (start for start, kind in zip(mappings.starts, mappings.kinds) if kind.perms[0] == "r")
            if self._memory.read_partial(next(readable, 0), 1):
                return
        raise ProcessGone(self._pid)

    def named(
        self, holders: Iterable[Holder], vmas: Vmas, thread_lists: ThreadLists, moment: Moment
    ) -> dict[Holder, Holder]:
        """Map holders that have only an address to the same ones with all that is known about it."""
        holders = list(holders)
        if not holders:
            return {}
        heaps = find_heaps(vmas, self._memory) if "glibc" in thread_lists.libc else []
        places = Places(self._pid, vmas, thread_lists, heaps, moment.places)
        try:
            return places.named(holders)
        finally:
            places.close()


def kernel_words(pid: int) -> list[tuple[str, int]]:
    """Pairs of ``timer`` or ``epoll`` and a word that is stored for it; what can't be read is left out."""
    words = []
    for word in _each_kernel_word(pid):
        words.append(word)
        if len(words) == _MAX_WORDS:
            break
    return words


def _each_kernel_word(pid: int) -> Iterator[tuple[str, int]]:
    with suppress(OSError):
        for line in read_small(f"/proc/{pid}/timers").splitlines():
            if line.startswith(b"signal:"):
                with suppress(ValueError):
                    yield "timer", int(line.rpartition(b"/")[2], 16)
    for descriptor in _polls(pid):
        with suppress(OSError):
            for line in read_small(f"/proc/{pid}/fdinfo/{descriptor}").splitlines():
                _, found, rest = line.partition(b" data:")
                if found:
                    with suppress(ValueError, IndexError):
                        yield "epoll", int(rest.split()[0], 16)


def _polls(pid: int) -> Iterator[str]:
    """The epoll descriptors of a process."""
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_FILES:
                return
            with suppress(OSError):
                if os.readlink(entry.path) == _EPOLL:  # noqa: PTH115 - of tens of thousands
                    yield entry.name
