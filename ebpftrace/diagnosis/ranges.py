# SPDX-License-Identifier: Apache-2.0
"""Indexes of address ranges and of points, and how much of a mapping is resident."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, Optional, TypeVar

from ebpftrace.model import Interval, Mapping
from ebpftrace.vmas import Vmas

T = TypeVar("T")


class RangeIndex(Generic[T]):
    """Values by address range; the ranges must not overlap."""

    def __init__(self, entries: Iterable[tuple[Interval, T]]) -> None:
        self._entries = sorted(entries, key=lambda entry: entry[0])
        self._starts = [interval.start for interval, _ in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, address: int) -> Optional[T]:
        """The value of the range that contains ``address``."""
        position = bisect_right(self._starts, address) - 1
        if position < 0 or address >= self._entries[position][0].end:
            return None
        return self._entries[position][1]

    def overlapping(self, wanted: Interval) -> list[tuple[Interval, T]]:
        """The entries that share a byte with ``wanted``, ascending."""
        if not self._entries:
            return []
        first = bisect_right(self._starts, wanted.start)
        if first and self._entries[first - 1][0].end > wanted.start:
            first -= 1
        return self._entries[first : bisect_left(self._starts, wanted.end, first)]

    def touches(self, pieces: Iterable[Interval]) -> bool:
        """Whether any entry shares a byte with one of ``pieces``."""
        for start, end in pieces if self._entries else ():
            before = bisect_left(self._starts, end) - 1
            if before >= 0 and self._entries[before][0].end > start:
                return True
        return False


class PointIndex:
    """Named addresses, such as the stack pointers of live tasks."""

    def __init__(self, points: Iterable[tuple[int, str]]) -> None:
        ordered = sorted(points)
        self._addresses = [address for address, _ in ordered]
        self._names = [name for _, name in ordered]

    def first_in(self, pieces: Iterable[Interval]) -> Optional[str]:
        """The name of the lowest point inside one of ``pieces``."""
        for start, end in pieces if self._addresses else ():
            position = bisect_left(self._addresses, start)
            if position < len(self._addresses) and self._addresses[position] < end:
                return self._names[position]
        return None


def subtract(whole: Interval, unmapped: Sequence[Interval]) -> tuple[Interval, ...]:
    """``whole`` without ``unmapped`` (ascending, disjoint)."""
    if not unmapped and whole.start < whole.end:
        return (whole,)
    left = []
    start = whole.start
    for hole in unmapped:
        if hole.start > start:
            left.append(Interval(start, hole.start))
        start = max(start, hole.end)
    if start < whole.end:
        left.append(Interval(start, whole.end))
    return tuple(left)


class Resident(NamedTuple):
    """How much of a mapping is in memory and in swap, and how large its guard is."""

    rss: Optional[int]
    """Bytes, including huge TLB pages; None if it is not known for any part."""
    guard: Optional[int]
    """Inaccessible bytes at the low end; None if /proc shows none.

    A guard set by MADV_GUARD_INSTALL (glibc 2.42) is not a mapping of its own in /proc.
    """
    swap: int = 0
    """Bytes in swap; 0 if that is not known."""


class Residence:
    """How much of each mapping is resident, by /proc/PID/smaps.

    The kernel may have merged several mappings into one area; each gets its share of the area's RSS and swap.
    The position of the last answer is kept, so that asking in ascending order needs no search.
    """

    def __init__(self, vmas: Vmas) -> None:
        self._vmas = vmas
        self._next = 0
        self._known: dict[Resident, Resident] = {}

    def of(self, mapping: Mapping) -> Resident:
        """The figures of one mapping; equal results share one object."""
        starts, ends, kinds = self._vmas.starts, self._vmas.ends, self._vmas.kinds
        pieces = mapping.pieces
        first = pieces[0].start
        rss = guard = None
        swap = 0
        at = self._next
        for start, end in pieces:
            if at == len(kinds) or not starts[at] <= start < ends[at]:
                at = bisect_right(ends, start)
            while at < len(kinds) and (area_start := starts[at]) < end:
                area_end, kind = ends[at], kinds[at]
                low, high = max(start, area_start), min(end, area_end)
                if kind.rss is not None:
                    resident = kind.rss + kind.huge
                    rss = (rss or 0) + resident * (high - low) // (area_end - area_start)
                if kind.swap:
                    swap += kind.swap * (high - low) // (area_end - area_start)
                if kind.guard and low == first:
                    guard = high - low
                at += 1
        self._next = at
        figures = Resident(rss, guard, swap)
        return self._known.setdefault(figures, figures)
