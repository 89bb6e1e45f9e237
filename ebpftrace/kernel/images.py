"""Where code lies in an address space: what tells a return address from other words on a stack."""

from __future__ import annotations

from collections.abc import Iterable

from ebpftrace.kernel.layout import IMAGES
from ebpftrace.model import Interval, Vma


def code_ranges(vmas: Iterable[Vma]) -> list[Interval]:
    """Return at most ``IMAGES`` ranges that cover all executable mappings, with the least in between."""
    code = sorted(Interval(vma.start, vma.end) for vma in vmas if "x" in vma.perms)
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
