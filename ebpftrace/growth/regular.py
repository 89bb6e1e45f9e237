# SPDX-License-Identifier: Apache-2.0
"""Which causes keep coming: a period is named only where growth stays and goes on over the window."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Optional

from ebpftrace.diagnosis.growth import keeps_growing
from ebpftrace.diagnosis.period import period, waves
from ebpftrace.growth.model import Regular


def regular(times: Iterable[int], size: int, start: int, end: int) -> Optional[Regular]:
    """Judge growth of ``size`` bytes that came at ``times`` in the window [start, end], ns.

    None where it shrank, comes irregularly, or came in one burst, as a start-up or a cache that fills does.
    """
    ordered = sorted(times)
    if size <= 0 or not keeps_growing(ordered, start, end):
        return None
    seconds = period(ordered)
    if seconds is None:
        return None
    # Of most waves: a busy machine may leave one out, and bring two at once after that.
    events = median(map(len, waves(ordered)))
    return Regular(period=seconds, step=round(size * events / len(ordered)))
