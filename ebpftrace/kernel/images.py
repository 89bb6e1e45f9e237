"""Where code lies in an address space: what tells a return address from other words on a stack."""

from __future__ import annotations

from collections.abc import Iterable

from ebpftrace.kernel.layout import IMAGES
from ebpftrace.model import Interval, Vma


def code_ranges(vmas: Iterable[Vma]) -> list[Interval]:
    """Return at most ``IMAGES`` ranges that cover all executable mappings, with the least in between."""
    ranges: list[Interval] = []
    for vma in sorted((vma for vma in vmas if "x" in vma.perms), key=lambda vma: vma.start):
        ranges.append(Interval(vma.start, vma.end))
    gaps = sorted((later.start - earlier.end, later.start) for earlier, later in zip(ranges, ranges[1:]))
    starts = {start for _, start in gaps[len(gaps) - (IMAGES - 1) :]} if len(ranges) > IMAGES else None
    if starts is None:
        return ranges
    merged: list[Interval] = []
    for interval in ranges:
        if merged and interval.start not in starts:
            merged[-1] = Interval(merged[-1].start, interval.end)
        else:
            merged.append(interval)
    return merged
