# SPDX-License-Identifier: Apache-2.0
"""The clocks of the kernel: monotonic, time since boot, wall clock.

In a time namespace (time_namespaces(7)) the first two differ by its offsets from the times in BPF programs.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache

from ebpftrace.model import Clock
from ebpftrace.units import NS

_RESOLUTION_NS = 1_000_000
_ATTEMPTS = 5


def read_clock() -> Clock:
    """Monotonic and wall-clock time (ns) of one moment, as close together as they can be read."""
    return Clock(*_read_pair(time.CLOCK_MONOTONIC, time.CLOCK_REALTIME))


@lru_cache(maxsize=1)
def suspended_ns() -> int:
    """Time in ns that the machine was suspended since boot: CLOCK_BOOTTIME less CLOCK_MONOTONIC.

    It is read only once, so that the start time of a thread, which is part of its identity, is the same
    number whenever it is computed.
    """
    monotonic, boottime = _read_pair(time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
    # Rounding gives 0 for a machine that was never suspended, instead of the time between two readings.
    return round((boottime - monotonic) / _RESOLUTION_NS) * _RESOLUTION_NS


def monotonic_from_ticks(ticks: int) -> int:
    """CLOCK_MONOTONIC ns of a start time in clock ticks since boot (proc(5), stat, field 22).

    A time before the last suspend comes out too early by the length of that suspend.
    """
    return ticks * NS // os.sysconf("SC_CLK_TCK") - suspended_ns()


def _read_pair(first: int, second: int) -> tuple[int, int]:
    """Both clocks (ns) at the same moment: of a few readings, the one with the least time in between."""
    best = None
    for _ in range(_ATTEMPTS):
        before = time.clock_gettime_ns(first)
        other = time.clock_gettime_ns(second)
        after = time.clock_gettime_ns(first)
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, other)
    assert best is not None
    return best[1], best[2]
