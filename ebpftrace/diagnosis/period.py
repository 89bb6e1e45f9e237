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
_REGULAR = 0.9
"""Part of the intervals that must be within the tolerance of their median."""


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
    regular = sum(abs(interval - middle) <= _TOLERANCE * middle for interval in intervals)
    return middle / NS if middle >= _SHORTEST and regular >= _REGULAR * len(intervals) else None


def _neighbours(times: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(times, islice(times, 1, None))
