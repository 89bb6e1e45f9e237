# SPDX-License-Identifier: Apache-2.0
"""Which addresses are covered by ranges, however many of those lie side by side."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from ebpftrace.model import Interval


class Covered:
    """The addresses that ascending, disjoint ranges cover, as few ranges as there can be."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """``ranges`` ascend, and no two overlap."""
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

    def holds(self, piece: Interval) -> bool:
        """Say whether every address of it is covered."""
        start, end = piece
        before = bisect_right(self._starts, start) - 1
        return before >= 0 and end <= self._ends[before]

    def gaps(self, piece: Interval) -> Iterator[Interval]:
        """Yield what of it is not covered, ascending."""
        at = piece.start
        for part in self.parts(piece):
            if at < part.start:
                yield Interval(at, part.start)
            at = part.end
        if at < piece.end:
            yield Interval(at, piece.end)

    def parts(self, piece: Interval) -> Iterator[Interval]:
        """Yield what of it is covered, ascending."""
        start, end = piece
        for at in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            yield Interval(max(start, self._starts[at]), min(end, self._ends[at]))
