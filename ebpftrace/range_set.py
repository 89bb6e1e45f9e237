# SPDX-License-Identifier: Apache-2.0
"""A set of addresses as ascending ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from ebpftrace.model import Interval


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
