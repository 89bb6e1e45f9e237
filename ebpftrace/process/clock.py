# SPDX-License-Identifier: Apache-2.0
"""The clocks of the kernel: monotonic, time since boot, wall clock.

Inside a time namespace (time_namespaces(7)) the first two are off by its offsets from what BPF sees.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache

from ebpftrace.model import Clock

_NS_PER_SECOND = 1_000_000_000
_RESOLUTION_NS = 1_000_000
_ATTEMPTS = 5


def read_clock() -> Clock:
    """Monotonic and wall-clock time (ns) of one moment, as close together as they can be read."""
    return Clock(*_read_pair(time.CLOCK_MONOTONIC, time.CLOCK_REALTIME))


@lru_cache(maxsize=1)
def suspended_ns() -> int:
    """How far CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC: time suspended since boot, in ns.

    Read once and kept, so that the start time of one thread is the same number whenever it is
    computed: it is part of the thread's identity.
    """
    monotonic, boottime = _read_pair(time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
    # Rounded so that a machine that never slept gives 0, not the time between two readings.
    return round((boottime - monotonic) / _RESOLUTION_NS) * _RESOLUTION_NS


def monotonic_from_ticks(ticks: int) -> int:
    """CLOCK_MONOTONIC ns of a start time in clock ticks since boot (proc(5), stat, field 22).

    A time before the machine last slept comes out too early by the time it slept.
    """
    return ticks * _NS_PER_SECOND // os.sysconf("SC_CLK_TCK") - suspended_ns()


def _read_pair(first: int, second: int) -> tuple[int, int]:
    """Both clocks (ns) at one moment: of a few readings the one with the least time in between."""
    best = None
    for _ in range(_ATTEMPTS):
        before = time.clock_gettime_ns(first)
        other = time.clock_gettime_ns(second)
        after = time.clock_gettime_ns(first)
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, other)
    assert best is not None
    return best[1], best[2]
