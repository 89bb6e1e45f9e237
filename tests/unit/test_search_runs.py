# SPDX-License-Identifier: Apache-2.0
"""Sets of addresses as runs, against sets of addresses."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.search.runs import Runs, difference, intersection, merged, no_runs, runs_of, union

PLACES = st.integers(0, 40)
RANGES = st.lists(st.tuples(PLACES, PLACES), max_size=8)


def members(runs: Runs) -> set[int]:
    starts, ends = runs.starts.tolist(), runs.ends.tolist()
    assert all(start < end for start, end in zip(starts, ends))
    assert all(end < start for end, start in zip(ends, starts[1:])), "not merged, or not ascending"
    return {at for start, end in zip(starts, ends) for at in range(start, end)}


def plain(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


@given(RANGES, RANGES)
def test_as_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    first, second = runs_of(one), runs_of(other)
    assert members(first) == plain(one)
    assert first.size == len(plain(one))
    assert members(union(first, second)) == plain(one) | plain(other)
    assert members(intersection(first, second)) == plain(one) & plain(other)
    assert members(difference(first, second)) == plain(one) - plain(other)


@given(RANGES)
def test_what_is_held(ranges: list[tuple[int, int]]) -> None:
    addresses = np.arange(50, dtype=np.uint64)
    assert set(addresses[runs_of(ranges).contains(addresses)].tolist()) == plain(ranges)


def test_the_whole_address_space() -> None:
    top = (1 << 64) - 1
    runs = merged(np.array([0], np.uint64), np.array([top], np.uint64))
    assert runs.size == top
    assert difference(runs, runs).pieces == 0
    assert members(union(no_runs(), no_runs())) == set()
