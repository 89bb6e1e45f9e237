# SPDX-License-Identifier: Apache-2.0
"""Do events come regularly?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Optional

from ebpftrace.diagnosis.evidence import NS

MIN_WAVES = 4
_SHORTEST = 5_000_000
"""ns; what comes faster comes in a loop, and says nothing about a timer."""
_ONE_WAVE = 0.1
"""Events closer than this part of the longest gap belong together: three threads started at each minute."""
_TOLERANCE = 0.1
"""Part of their median by which intervals may differ from it."""
_IRREGULAR = 0.1
"""Part of the intervals that may differ more ..."""
_ENOUGH = 5
"""... and one that may, from so many on: a busy machine wakes a timer late now and then."""


def period(times: Iterable[int]) -> Optional[float]:
    """Seconds between one event, or batch of events, and the next; None where they are not regular.

    ``times`` in ns, in any order.  Three intervals are the least that can show regularity.
    """
    began = [wave[0] for wave in waves(times)]
    if len(began) < MIN_WAVES:
        return None
    intervals = [later - earlier for earlier, later in _neighbours(began)]
    middle = median(intervals)
    most = max(_IRREGULAR * len(intervals), 1 if len(intervals) >= _ENOUGH else 0)
    return middle / NS if middle >= _SHORTEST and _irregular(intervals, middle) <= most else None


def waves(times: Iterable[int]) -> list[list[int]]:
    """Events that belong together, in their order; ``times`` in any order and unit."""
    ordered = sorted(times)
    pause = _ONE_WAVE * max((later - earlier for earlier, later in _neighbours(ordered)), default=0)
    found = [ordered[:1]] if ordered else []
    for earlier, later in _neighbours(ordered):
        if later - earlier > pause:
            found.append([])
        found[-1].append(later)
    return found


def _irregular(intervals: Sequence[int], middle: float) -> int:
    """How many differ; the short one after an event that came late does not, if it makes up for the delay."""
    tolerance = _TOLERANCE * middle
    return sum(
        abs(interval - middle) > tolerance
        and not (interval < middle and abs(before + interval - 2 * middle) <= tolerance)
        for before, interval in zip([middle, *intervals], intervals)
    )


def _neighbours(times: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(times, islice(times, 1, None))
