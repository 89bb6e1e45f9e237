# SPDX-License-Identifier: Apache-2.0
"""Whose frame a byte of a stack lies in, against a plain model of calls."""

from __future__ import annotations

from typing import Optional

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.unwind.copies import End, Pc, Walk

WORD = 8


@st.composite
def walks(draw: st.DrawFn) -> tuple[Walk, dict[int, Optional[int]]]:
    """A walk over frames of known sizes, and for each byte its frame where the walk lets that be certain."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    known = [True, *(draw(st.sampled_from([True, True, True, False])) for _ in sizes)]
    exact = [True, *(draw(st.sampled_from([False, False, False, True])) for _ in sizes)]
    guessed = draw(st.none() | st.integers(0, len(sizes)))
    slots: list[Optional[int]] = [None]
    owners: dict[int, Optional[int]] = {}
    at = 0
    for number, size in enumerate(sizes):
        end = at + (size + 1) * WORD  # the return address is the last word of a frame
        begins = number == 0 or (known[number] and not exact[number])
        ends = known[number + 1] and not exact[number + 1]
        certain = begins and ends and (guessed is None or number < guessed)
        owners.update(dict.fromkeys(range(at, end), number if certain else None))
        slots.append(end - WORD if known[number + 1] else None)
        at = end
    owners.update(dict.fromkeys(range(at, at + 64)))
    pcs = tuple(Pc(0x1000 + number, is_exact) for number, is_exact in enumerate(exact))
    return Walk(pcs, End.OUTERMOST, tuple(slots), guessed), owners


@given(walks())
def test_each_byte_belongs_to_one_frame_or_nothing_is_said(
    made: tuple[Walk, dict[int, Optional[int]]],
) -> None:
    walk, owners = made
    found: dict[int, Optional[int]] = dict.fromkeys(owners)
    reached = 0
    for start, end, number in walk.extents():
        assert reached <= start < end
        reached = end
        found.update(dict.fromkeys(range(start, end), number))
    assert found == owners


def test_slots_that_go_down_end_it() -> None:
    walk = Walk((Pc(1, True), Pc(2, False), Pc(3, False)), End.OUTERMOST, (None, 40, 16))
    assert walk.extents() == [(0, 48, 0)]
