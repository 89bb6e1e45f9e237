# SPDX-License-Identifier: Apache-2.0
"""Which of some pages of a process are in memory, and which are parts of huge pages.

/proc/PID/pagemap and /proc/kpageflags have 8 bytes for each page and each page frame (kernel
Documentation/admin-guide/mm/pagemap.rst); neither brings a page in, nor stops the process.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from typing import Optional

from ebpftrace.procfs.access import ProcessGone, task_dir, through_live_task
from ebpftrace.units import PAGE

_ENTRY = struct.Struct("=Q")
_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
_HUGE = 1 << 22  # KPF_THP, include/uapi/linux/kernel-page-flags.h
_ENTRIES_AT_ONCE = 512
_ENTRIES_OF_A_READ = 1 << 17
_MAX_ENTRIES = 1 << 23
"""Limit of pages that are distinguished: 32 GiB of 4 KiB, read in a fifth of a second."""
_TOP_BYTE = bytes(byte >> 7 for byte in range(256))
"""Whether a page is present, by the highest byte of its entry, the last of eight."""


class PageState(Enum):
    """What became of a page."""

    ABSENT = 0
    """Given back, or swapped out."""
    PRESENT = 1
    HUGE = 2
    """Present, and part of a transparent huge page."""


class PresentPages:
    """Which pages of some ranges were present at one moment; of others nothing is known."""

    def __init__(self, pid: int, ranges: Iterable[tuple[int, int]]) -> None:
        """Read the pages of these ranges (start, end; ascending, disjoint), of the first ones at most.

        Raises ``ProcessGone`` or ``CannotTrace``.
        """
        self._starts: list[int] = []
        self._present: list[bytes] = []
        """One byte for each page."""
        self._read = 0
        fd = _open(pid)
        try:
            for start, end in ranges:
                for first in range(start // PAGE, end // PAGE, _ENTRIES_OF_A_READ):
                    self._add(fd, first, min(_ENTRIES_OF_A_READ, end // PAGE - first))
        finally:
            os.close(fd)

    def _add(self, fd: int, first: int, count: int) -> None:
        if self._read + count > _MAX_ENTRIES:
            return
        self._read += count
        with suppress(OSError):
            content = os.pread(fd, count * _ENTRY.size, first * _ENTRY.size)
            self._starts.append(first)
            self._present.append(content[_ENTRY.size - 1 :: _ENTRY.size].translate(_TOP_BYTE))

    @property
    def count(self) -> int:
        """How many of them were present, as far as is known."""
        return sum(pages.count(1) for pages in self._present)

    def had(self, address: int) -> bool:
        """Whether the page at this address was present, as far as is known."""
        number = address // PAGE
        index = bisect_right(self._starts, number) - 1
        if index < 0 or number - self._starts[index] >= len(self._present[index]):
            return False
        return bool(self._present[index][number - self._starts[index]])


def page_states(pid: int, addresses: Iterable[int]) -> dict[int, PageState]:
    """The state of the page at each address, by address; all ABSENT where the process has exited.

    Whether a page is part of a huge one is known only to who may see page frames (CAP_SYS_ADMIN).
    Raises ``CannotTrace``.
    """
    numbers = {address: address // PAGE for address in addresses}

    try:
        fd = _open(pid)
    except ProcessGone:
        return dict.fromkeys(numbers, PageState.ABSENT)
    try:
        entries = _entries(fd, numbers.values())
    finally:
        os.close(fd)
    frames = {number: entry & _FRAME for number, entry in entries.items() if entry & _PRESENT}
    flags = _frame_flags(frames.values())
    return {address: _state(frames.get(number), flags) for address, number in numbers.items()}


def _open(pid: int) -> int:
    def use(tid: int) -> int:
        return os.open(f"{task_dir(pid, tid)}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    return through_live_task(pid, "page map", use)


def _state(frame: Optional[int], flags: dict[int, int]) -> PageState:
    if frame is None:
        return PageState.ABSENT
    return PageState.HUGE if flags.get(frame, 0) & _HUGE else PageState.PRESENT


def _frame_flags(frames: Iterable[int]) -> dict[int, int]:
    shown = {frame for frame in frames if frame}  # 0: we may not see them
    if not shown:
        return {}
    try:
        fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return _entries(fd, shown)
    finally:
        os.close(fd)


def _entries(fd: int, numbers: Iterable[int]) -> dict[int, int]:
    """The entries of such a file, by number; those that can't be read are left out."""
    found: dict[int, int] = {}
    block, first = b"", 0
    for number in sorted(set(numbers)):
        at = (number - first) * _ENTRY.size
        if not 0 <= at <= len(block) - _ENTRY.size:
            first = number - number % _ENTRIES_AT_ONCE
            block = b""
            with suppress(OSError):
                block = os.pread(fd, _ENTRIES_AT_ONCE * _ENTRY.size, first * _ENTRY.size)
            at = (number - first) * _ENTRY.size
        if at <= len(block) - _ENTRY.size:
            (found[number],) = _ENTRY.unpack_from(block, at)
    return found
