# SPDX-License-Identifier: Apache-2.0
"""Address ranges: a set of addresses, and a map from disjoint ranges to values."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Optional, TypeVar

from sortedcontainers import SortedDict

from ebpftrace.model import Interval

V = TypeVar("V")


class RangeSet:
    """The addresses in ascending, disjoint ranges; adjacent ranges are joined."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """``ranges`` are ascending and disjoint."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size = 0
        """Bytes."""
        reached = -1
        for start, end in ranges:
            self.size += end - start
            if start != reached:
                self._starts.append(start)
                self._ends.append(end)
            else:
                self._ends[-1] = end
            reached = end

    def contains(self, piece: Interval) -> bool:
        """Return whether every address of ``piece`` is in the set."""
        start, end = piece
        before = bisect_right(self._starts, start) - 1
        return before >= 0 and end <= self._ends[before]

    def gaps(self, piece: Interval) -> Iterator[Interval]:
        """Yield the parts of ``piece`` that are not in the set, ascending."""
        at = piece.start
        for part in self.intersection(piece):
            if at < part.start:
                yield Interval(at, part.start)
            at = part.end
        if at < piece.end:
            yield Interval(at, piece.end)

    def intersection(self, piece: Interval) -> Iterator[Interval]:
        """Yield the parts of ``piece`` that are in the set, ascending."""
        start, end = piece
        for at in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            yield Interval(max(start, self._starts[at]), min(end, self._ends[at]))


def isolated(
    ranges: Iterable[tuple[int, int, V]], others: Iterable[tuple[int, int]]
) -> Iterator[tuple[V, bool]]:
    """Yield the value of each range, and whether the range shares no address with any other one.

    ``ranges`` ascend by their starts; ``others`` come in any order and may overlap each other.  An empty
    range counts as shared.  O(n + m log m).
    """
    obstacles = [*sorted(others), (sys.maxsize, 0)]
    at = 0
    reached = -1
    ranges = iter(ranges)
    following = next(ranges, None)
    while following is not None:
        start, end, value = following
        following = next(ranges, None)
        while obstacles[at][0] <= start:
            reached = max(reached, obstacles[at][1])
            at += 1
        is_alone = reached <= start < end <= obstacles[at][0]
        yield value, is_alone and (following is None or end <= following[0])
        if end > reached:
            reached = end


def extend(pieces: list[Interval], start: int, end: int) -> None:
    """Append a range to ascending pieces, joined with the last one where they touch."""
    if pieces and pieces[-1].end == start:
        pieces[-1] = Interval(pieces[-1].start, end)
    else:
        pieces.append(Interval(start, end))


class IntervalMap(Generic[V]):
    """Disjoint half-open ranges, each with a value.

    Lookups and changes cost O(log n + k), k the number of ranges they touch.  Neighbours with
    equal values are not joined.  An empty range (``start >= end``) holds nothing and changes nothing.
    """

    def __init__(self) -> None:
        self._at: SortedDict[int, tuple[int, V]] = SortedDict()

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        """Yield (start, end, value), ascending; the map must not change meanwhile."""
        for start, (end, value) in self._at.items():
            yield start, end, value

    def copy(self) -> IntervalMap[V]:
        """Return an independent map with the same values; O(n)."""
        twin: IntervalMap[V] = IntervalMap()
        twin._at = SortedDict(self._at)
        return twin

    def rebuild(self, change: Callable[[V], Optional[V]]) -> None:
        """Replace each value by ``change(value)``; drop the ranges for which that is None; O(n)."""
        changed = ((start, end, change(value)) for start, (end, value) in self._at.items())
        self._at = SortedDict({start: (end, value) for start, end, value in changed if value is not None})

    def add(self, ranges: Iterable[tuple[int, int, V]]) -> None:
        """Add ranges that are not empty and share no address with each other or with the map."""
        self._at.update({start: (end, value) for start, end, value in ranges})

    def at(self, address: int) -> Optional[V]:
        """Return the value at ``address``, None where there is none."""
        found = self._reaching_into(address, address + 1)
        return found[0][2] if found else None

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """Return the ranges within [start, end), clipped to it, ascending."""
        return [
            (max(range_start, start), min(range_end, end), value)
            for range_start, range_end, value in self._reaching_into(start, end)
        ]

    def cut(self, start: int, end: int, removable: Callable[[V], bool]) -> list[tuple[int, int, V]]:
        """Remove the ``removable`` values from [start, end); return the removed ranges, ascending."""
        found = self._reaching_into(start, end)
        return [self._cut_one(start, end, *whole) for whole in found if removable(whole[2])]

    def fill(self, start: int, end: int, value: V, replaceable: Callable[[V], bool]) -> None:
        """Set [start, end) to ``value``, except where the present value is not ``replaceable``."""
        at = start
        for whole in self._reaching_into(start, end):
            range_start, range_end, present = whole
            if replaceable(present):
                self._cut_one(start, end, *whole)
                continue
            if at < range_start:
                self._at[at] = (range_start, value)
            at = range_end
        if at < end:
            self._at[at] = (end, value)

    def _reaching_into(self, start: int, end: int) -> list[tuple[int, int, V]]:
        """Return the ranges that reach into [start, end), not clipped, ascending."""
        found: list[tuple[int, int, V]] = []
        if start >= end:
            return found
        for index in range(self._at.bisect_left(end) - 1, -1, -1):
            range_start, (range_end, value) = self._at.peekitem(index)
            if range_end <= start:
                break
            found.append((range_start, range_end, value))
        found.reverse()
        return found

    def _cut_one(
        self, start: int, end: int, range_start: int, range_end: int, value: V
    ) -> tuple[int, int, V]:
        """Remove [start, end) from one range that reaches into it; return the removed part."""
        if range_start < start:
            self._at[range_start] = (start, value)
            range_start = start
        else:
            del self._at[range_start]
        if end < range_end:
            self._at[end] = (range_end, value)
            range_end = end
        return range_start, range_end, value
