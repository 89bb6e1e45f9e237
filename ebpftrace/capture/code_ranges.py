# SPDX-License-Identifier: Apache-2.0
"""The ranges of code in an address space, by which return addresses on a stack are recognised."""

from __future__ import annotations

from ebpftrace.capture.layout import IMAGES
from ebpftrace.model import Interval
from ebpftrace.vmas import Vmas


def code_ranges(vmas: Vmas) -> list[Interval]:
    """Return at most ``IMAGES`` ranges that cover all executable mappings and as little else as possible."""
    code = [
        Interval(start, end)
        for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds)
        if "x" in kind.perms
    ]
    gaps = sorted((later.start - earlier.end, later.start) for earlier, later in zip(code, code[1:]))
    # Ranges begin where the widest gaps end.
    begins = {start for _, start in gaps[-(IMAGES - 1) :]}
    ranges: list[Interval] = []
    for interval in code:
        if ranges and interval.start not in begins:
            ranges[-1] = Interval(ranges[-1].start, interval.end)
        else:
            ranges.append(interval)
    return ranges
