# SPDX-License-Identifier: Apache-2.0
"""The interval map against a plain list of cells."""

from __future__ import annotations

from typing import Optional

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.addresses import IntervalMap, isolated

SIZE = 24
bounds = st.integers(0, SIZE)
changes = st.tuples(st.sampled_from(["fill", "cut"]), bounds, bounds, st.integers(0, 9), st.integers(0, 9))


def cells(map_: IntervalMap[int]) -> list[Optional[int]]:
    found: list[Optional[int]] = [None] * SIZE
    reached = 0
    for start, end, value in map_:
        assert reached <= start < end
        found[start:end] = [value] * (end - start)
        reached = end
    return found


@given(st.lists(changes, max_size=30), bounds, bounds)
def test_map_equals_cells(steps: list[tuple[str, int, int, int, int]], start: int, end: int) -> None:
    map_: IntervalMap[int] = IntervalMap()
    truth: list[Optional[int]] = [None] * SIZE
    for kind, low, high, value, limit in steps:
        touched = range(low, high)
        if kind == "fill":
            map_.fill(low, high, value, lambda standing, limit=limit: standing < limit)
            for cell in touched:
                standing = truth[cell]
                truth[cell] = value if standing is None or standing < limit else standing
        else:
            gone = map_.cut(low, high, lambda standing, limit=limit: standing < limit)
            expected = [cell for cell in touched if (held := truth[cell]) is not None and held < limit]
            assert [cell for piece in gone for cell in range(piece[0], piece[1])] == expected
            for cell in expected:
                truth[cell] = None
        assert cells(map_) == truth
    assert cells(map_.copy()) == truth
    seen = [(cell, value) for low, high, value in map_.overlapping(start, end) for cell in range(low, high)]
    assert seen == [(cell, truth[cell]) for cell in range(start, end) if truth[cell] is not None]
    assert [map_.at(cell) for cell in range(SIZE)] == truth


ranges = st.lists(st.tuples(bounds, bounds), max_size=8)


@given(ranges, ranges)
def test_isolated_ranges_share_no_address_with_others(
    some: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    some.sort()
    found = list(isolated([(*bounds, at) for at, bounds in enumerate(some)], others))
    assert [at for at, _ in found] == list(range(len(some)))
    alone = [at for at, is_alone in found if is_alone]
    rest = [at for at, is_alone in found if not is_alone]
    for at, bounds in enumerate(some):
        cells = set(range(*bounds))
        elsewhere = [*some[:at], *some[at + 1 :], *others]
        free = bool(cells) and not any(cells & set(range(*other)) for other in elsewhere)
        # An empty range inside another one can make the other count as shared, never as isolated.
        assert at in (alone if free and all(start < end for start, end in elsewhere) else [*alone, *rest])
        assert free or at in rest


def test_add_puts_ranges_beside_the_present_ones() -> None:
    map_: IntervalMap[int] = IntervalMap()
    map_.fill(4, 8, 1, lambda _: True)
    map_.add([(8, 9, 3), (1, 4, 2)])
    assert list(map_) == [(1, 4, 2), (4, 8, 1), (8, 9, 3)]


def test_rebuild_changes_and_drops() -> None:
    map_: IntervalMap[int] = IntervalMap()
    map_.fill(0, 4, 1, lambda _: True)
    map_.fill(4, 8, 2, lambda _: True)
    map_.rebuild(lambda value: None if value == 1 else value * 10)
    assert list(map_) == [(4, 8, 20)]
