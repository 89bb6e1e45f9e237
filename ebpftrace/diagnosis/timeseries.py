# SPDX-License-Identifier: Apache-2.0
"""What the times of events show: do they come regularly, and does their number keep growing?

**Growth** is judged by the survivors alone, without their past.  A steady leak leaves survivors of every
age; a burst at start-up leaves survivors of one age; a queue, a pool or a hand-over that frees after a while
leaves young ones only.  So a site keeps growing when

* three survivors lie at least ``STEP`` of the window apart from one to the next.  A steady leak of three or
  more that lasts the whole window always has them: its n survivors are at most 1/(n-1) and more than 1/(n+1)
  of the window apart, so for n = 3 and n = 4 every gap, and beyond that every sum of a few gaps, is long
  enough and fits twice.  A burst can't have them, nor can survivors that live for less than two steps, nor
  one burst followed by survivors younger than a step;
* old survivors are not far fewer than younger ones.  Where lifetimes vary, a busy queue always has a few old
  members, but their number falls with age; that of a leak does not.  The youngest, the tail of the window,
  are not counted, because they show nothing yet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Optional

from ebpftrace.diagnosis.evidence import NS

STEPS = 3
STEP = 0.2
"""Part of the window."""
_OLD = 0.5
"""Survivors made in this first part of the window are old."""
_TAIL = 0.8
"""Survivors made after this part of the window are not counted."""
_MAX_YOUNGER_PER_OLD = 2

MIN_WAVES = 4
_MIN_PERIOD = 5_000_000
"""ns; events that follow faster come from a loop, and show nothing about a timer."""
_ONE_WAVE = 0.1
"""Events closer than this part of the longest gap belong together: three threads started at each minute."""
_TOLERANCE = 0.1
"""Part of their median by which intervals may differ from it."""
_MAX_IRREGULAR = 0.1
"""Part of the intervals that may differ by more than ``_TOLERANCE``."""
_ONE_IRREGULAR_FROM = 5
"""One interval may differ if there are at least this many: a busy machine sometimes wakes a timer late."""


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
    return younger <= _MAX_YOUNGER_PER_OLD * old


def period(times: Iterable[int]) -> Optional[float]:
    """Seconds between one event, or batch of events, and the next; None if they are not regular.

    ``times`` are ns, in any order.  Three intervals are the least that can show regularity.
    """
    began = [wave[0] for wave in waves(times)]
    if len(began) < MIN_WAVES:
        return None
    intervals = [later - earlier for earlier, later in _neighbours(began)]
    # Hardly any report needs it, and it takes 20 ms to import.
    from statistics import median

    middle = median(intervals)
    allowed = max(_MAX_IRREGULAR * len(intervals), 1 if len(intervals) >= _ONE_IRREGULAR_FROM else 0)
    return middle / NS if middle >= _MIN_PERIOD and _irregular(intervals, middle) <= allowed else None


def waves(times: Iterable[int]) -> list[list[int]]:
    """Group events that come together, in ascending order; ``times`` may have any order and unit."""
    ordered = sorted(times)
    pause = _ONE_WAVE * max((later - earlier for earlier, later in _neighbours(ordered)), default=0)
    found = [ordered[:1]] if ordered else []
    for earlier, later in _neighbours(ordered):
        if later - earlier > pause:
            found.append([])
        found[-1].append(later)
    return found


def _irregular(intervals: Sequence[int], middle: float) -> int:
    """Count the intervals that differ too much.

    The short interval after a late event does not count if the two make up for each other.
    """
    tolerance = _TOLERANCE * middle
    return sum(
        abs(interval - middle) > tolerance
        and not (interval < middle and abs(before + interval - 2 * middle) <= tolerance)
        for before, interval in zip([middle, *intervals], intervals)
    )


def _neighbours(times: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(times, islice(times, 1, None))
