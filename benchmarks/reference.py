# SPDX-License-Identifier: Apache-2.0
"""Reference work, which no tool slows down: how long it takes says what else the machine does to a CPU."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = 20_000
"""About a millisecond."""
_LEVELS_PER_DOUBLING = 6
"""Steps of 12 %, as in ``load.c``."""


def reference() -> int:
    """Nanoseconds of CPU time that it takes now."""
    began = time.thread_time_ns()
    total = 0
    for step in range(_STEPS):
        total += step * step
    return time.thread_time_ns() - began


def level_of(nanoseconds: int) -> int:
    """By how long it took; the number means nothing by itself."""
    return int(_LEVELS_PER_DOUBLING * math.log2(max(nanoseconds, 1)))


@contextmanager
def on_cpu(cpu: int) -> Iterator[None]:
    """Have this thread run on one CPU only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
