"""Which causes keep coming: a period is named only where growth stays and goes on over the window."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from ebpftrace.diagnosis.growth import keeps_growing
from ebpftrace.diagnosis.period import period
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
    waves = round((ordered[-1] - ordered[0]) / (seconds * 1e9)) + 1
    return Regular(period=seconds, step=round(size / waves))
