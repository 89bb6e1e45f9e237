# SPDX-License-Identifier: Apache-2.0
"""What the rounds of one tool under one kind of load bring; pure."""

from __future__ import annotations

from typing import Optional

from benchmarks.results import Cell
from benchmarks.slices import Slowdown

_FAR_SLOWER = 5
"""From this ratio on one round is enough: neither noise nor spread makes it another answer."""


class Tally:
    """The rounds so far."""

    def __init__(self) -> None:
        self.failure = ""
        """Why the tool could not be measured."""
        self._trusted: list[float] = []
        self._noisy: list[float] = []
        self._seen = self._made = 0

    @property
    def is_empty(self) -> bool:
        """No round has brought a ratio."""
        return not self._trusted and not self._noisy

    @property
    def is_settled(self) -> bool:
        """More rounds would bring nothing new, but take long."""
        return bool(self.failure) or any(ratio >= _FAR_SLOWER for ratio in self._trusted)

    def add_round(self, found: Slowdown) -> None:
        """What one round brought."""
        is_trusted = found.is_similar or found.ratio >= _FAR_SLOWER
        (self._trusted if is_trusted else self._noisy).append(found.ratio)

    def add_seen(self, seen: Optional[int], calls: int) -> None:
        """The tool saw so many of so many calls; None: it does not say."""
        if seen is not None and calls:
            self._seen += seen
            self._made += calls

    def cell(self) -> Cell:
        """Of the rounds that noise has no part in, or of all where it has in each."""
        seen = self._seen / self._made if self._made else None
        is_noisy = not self._trusted and bool(self._noisy)
        return Cell(tuple(self._trusted or self._noisy), seen, self.failure, is_noisy)
