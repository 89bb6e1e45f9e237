# SPDX-License-Identifier: Apache-2.0
"""Where code lies: few ranges, all code in them, the widest gaps between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.capture.layout import IMAGES
from ebpftrace.capture.tracer import code_ranges
from ebpftrace.model import Vma
from ebpftrace.vmas import Vmas


def vma(start: int, end: int, perms: str = "r-xp") -> Vma:
    return Vma(start, end, perms, 0, "00:00", 0, "")


@st.composite
def layouts(draw: st.DrawFn) -> Vmas:
    edges = sorted(draw(st.sets(st.integers(1, 1 << 35), max_size=40)))
    pairs = zip(edges[::2], edges[1::2])
    return Vmas(vma(start << 12, end << 12, draw(st.sampled_from(["r-xp", "rw-p"]))) for start, end in pairs)


@given(layouts())
def test_all_code_is_covered_by_few_ranges(vmas: Vmas) -> None:
    ranges = code_ranges(vmas)
    assert len(ranges) <= IMAGES
    code = [area for area in vmas if "x" in area.perms]
    for area in code:
        assert any(start <= area.start and area.end <= end for start, end in ranges)
    assert {start for start, _ in ranges} <= {area.start for area in code}


def test_what_is_merged_lies_closest_together() -> None:
    code = Vmas(vma(at << 20, (at << 20) + 4096) for at in (1, 2, 100, 200, 300))
    assert code_ranges(code)[0] == (1 << 20, (2 << 20) + 4096)
    assert len(code_ranges(code)) == IMAGES
