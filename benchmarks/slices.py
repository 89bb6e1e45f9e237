# SPDX-License-Identifier: Apache-2.0
"""What a process got done in some seconds, and how two of these compare; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.ratios import NO_PROGRESS

_ENOUGH_SIMILAR = 30
"""Parts; of fewer the medians say little."""


class Level(NamedTuple):
    """The parts of a slice in which reference work took equally long."""

    parts: int
    pace: float
    """Seconds that an operation took, the median."""


@dataclass(frozen=True)
class Slice:
    """What a process got done; nothing where it did not answer."""

    done: int = 0
    levels: Mapping[int, Level] = field(default_factory=dict)
    """By how long reference work took; the numbers mean nothing by themselves."""

    @property
    def pace(self) -> float:
        """Seconds that an operation took, in quiet and noise together."""
        parts = sum(level.parts for level in self.levels.values())
        return sum(level.parts * level.pace for level in self.levels.values()) / parts if parts else math.inf


class Slowdown(NamedTuple):
    """How many times slower a process ran under a tool."""

    ratio: float
    is_similar: bool
    """Both were measured while reference work took equally long: the machine's noise is no part of it."""


def slowdown(before: Slice, traced: Slice, after: Slice) -> Slowdown:
    """Compare a slice under a tool with those just before and after it, level by level.

    Each level counts by the parts that both have.  ``before`` and ``after`` got something done.
    """
    if not traced.done:
        return Slowdown(NO_PROGRESS, is_similar=True)
    similar = 0
    logarithms = 0.0
    for untraced in (before, after):
        for number in traced.levels.keys() & untraced.levels.keys():
            slow, fast = traced.levels[number], untraced.levels[number]
            parts = min(slow.parts, fast.parts)
            similar += parts
            logarithms += parts * math.log(slow.pace / fast.pace)
    if similar < _ENOUGH_SIMILAR:
        return Slowdown(2 * traced.pace / (before.pace + after.pace), is_similar=False)
    return Slowdown(math.exp(logarithms / similar), is_similar=True)
