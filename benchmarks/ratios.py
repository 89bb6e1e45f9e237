# SPDX-License-Identifier: Apache-2.0
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
    """The median of some rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; infinite ones count as the highest."""
        return cls(statistics.median(values), min(values), max(values))


def rotated(items: Sequence[str], by: int) -> list[str]:
    """The items in another order each round, so that none is always measured first."""
    if not items:
        return []
    first = by % len(items)
    return [*items[first:], *items[:first]]
