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
    ordered = sorted(times)
    if len(ordered) < MIN_WAVES or ordered[0] == ordered[-1]:
        return None
    pause = _ONE_WAVE * max(later - earlier for earlier, later in _neighbours(ordered))
    waves = ordered[:1] + [later for earlier, later in _neighbours(ordered) if later - earlier > pause]
    if len(waves) < MIN_WAVES:
        return None
    intervals = [later - earlier for earlier, later in _neighbours(waves)]
    middle = median(intervals)
    most = max(_IRREGULAR * len(intervals), 1 if len(intervals) >= _ENOUGH else 0)
    return middle / NS if middle >= _SHORTEST and _irregular(intervals, middle) <= most else None


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
