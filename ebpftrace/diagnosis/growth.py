# SPDX-License-Identifier: Apache-2.0
"""Does a site keep leaving mappings?  Judged by what is still there, without its past.

Who leaks at a steady rate leaves survivors of every age.  A start-up burst leaves survivors of one
age; a queue, a pool or a hand-over that gives back after a while leaves young ones only.  So a site
grows when

* three survivors lie at least ``STEP`` of the window apart from one to the next.  A steady leak of
  three or more that lasts the whole window always has them: its n survivors are at most 1/(n-1) and
  more than 1/(n+1) of the window apart, so for n = 3 and n = 4 every gap, and beyond that every sum of
  a few gaps, is long enough and fits twice.  A burst, or survivors that live for less than two steps,
  can't have them, nor can one burst followed by survivors younger than a step.
* old survivors are not far fewer than younger ones.  Where lifetimes vary, a busy queue always has a
  few old members; but their number falls with age, that of a leak does not.  The youngest, the tail
  of the window, are not counted: they say nothing yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

STEPS = 3
STEP = 0.2
"""Part of the window."""
_OLD = 0.5
_TAIL = 0.8
_FEWER = 2


def keeps_growing(times: Iterable[int], start: int, end: int) -> bool:
    """Whether survivors made at ``times`` (ns, any order) are a leak that goes on in [start, end]."""
    window = end - start
    inside = sorted(time for time in times if start <= time <= end)
    if window <= 0 or len(inside) < STEPS:
        return False
    return _steps(inside, STEP * window) >= STEPS and _old_ones_stay(inside, start, window)


def _steps(times: list[int], step: float) -> int:
    steps, at = 0, 0
    while at < len(times):
        steps += 1
        at = bisect_left(times, times[at] + step, at + 1)
    return steps


def _old_ones_stay(times: list[int], start: int, window: int) -> bool:
    old = bisect_left(times, start + _OLD * window)
    younger = bisect_left(times, start + _TAIL * window) - old
    return _FEWER * old >= younger
