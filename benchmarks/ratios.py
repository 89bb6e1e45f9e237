"""Ratios and their spread; pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NO_PROGRESS = math.inf
"""Ratio of a process that got nothing done at all."""


@dataclass(frozen=True)
class Spread:
    """Of some rounds the fastest, the median and the slowest.

    The fastest is the figure to quote: what else the machine does can only slow a round down.
    """

    fastest: float
    median: float
    slowest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one ratio; infinite ones count as the slowest."""
        return cls(min(values), statistics.median(values), max(values))


def rotated(items: Sequence[str], by: int) -> list[str]:
    """The items in another order each round, so that none is always measured first."""
    if not items:
        return []
    first = by % len(items)
    return [*items[first:], *items[:first]]
