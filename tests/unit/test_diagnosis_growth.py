# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from ebpftrace.diagnosis.timeseries import keeps_growing

WINDOW = 1_000_000_000_000
START = 5_000_000_000_000
END = START + WINDOW


@given(count=st.integers(3, 400), phase=st.floats(0, 0.999), window=st.integers(10**9, 10**13))
@example(count=3, phase=0.999, window=10**9)
@example(count=4, phase=0.0, window=10**9)
def test_a_steady_leak_is_found(count: int, phase: float, window: int) -> None:
    """All of a steady leak over the whole window, wherever in its first interval the first one falls."""
    interval = window / count
    times = [START + int((phase + number) * interval) for number in range(count)]
    assert keeps_growing(times, START, START + window)


@given(
    lifetime=st.floats(0.001, 0.38),
    rate=st.integers(1, 3000),
    seed=st.integers(0, 1 << 30),
)
def test_a_queue_that_gives_back_is_no_leak(lifetime: float, rate: int, seed: int) -> None:
    """Members live up to ``lifetime`` of the window: only those of the last stretch are left."""
    draw = random.Random(seed)
    made = (draw.random() for _ in range(rate))
    times = [START + int(moment * WINDOW) for moment in made if moment > 1 - lifetime * draw.random()]
    assert not keeps_growing(times, START, END)


@given(
    at=st.floats(0, 0.8), width=st.floats(0, 0.19), count=st.integers(1, 2000), seed=st.integers(0, 1 << 30)
)
def test_a_burst_is_no_leak(at: float, width: float, count: int, seed: int) -> None:
    draw = random.Random(seed)
    times = [START + int((at + width * draw.random()) * WINDOW) for _ in range(count)]
    assert not keeps_growing(times, START, END)


@given(
    burst=st.integers(1, 500), young=st.integers(0, 500), width=st.floats(0, 0.19), tail=st.floats(0, 0.19)
)
def test_a_start_up_burst_and_a_queue_are_no_leak(burst: int, young: int, width: float, tail: float) -> None:
    times = [START + int(width * WINDOW * number / burst) for number in range(burst)]
    times += [END - int(tail * WINDOW * number / max(young, 1)) for number in range(young)]
    assert not keeps_growing(times, START, END)


@given(mean=st.floats(0.01, 0.15), seed=st.integers(0, 1 << 30))
def test_a_busy_queue_with_a_few_long_lived_members_is_no_leak(mean: float, seed: int) -> None:
    """Exponential lifetimes: some members are always old, but few."""
    draw = random.Random(seed)
    made = [draw.random() for _ in range(20_000)]
    times = [START + int(moment * WINDOW) for moment in made if moment + draw.expovariate(1 / mean) > 1]
    assert not keeps_growing(times, START, END)


def test_a_leak_beneath_a_start_up_burst_is_found() -> None:
    burst = [START + number for number in range(1000)]
    leak = [START + WINDOW * number // 10 for number in range(10)]
    assert keeps_growing(burst + leak, START, END)


def test_two_are_not_enough() -> None:
    assert not keeps_growing([START, END], START, END)


def test_an_empty_or_reversed_window_grows_nothing() -> None:
    assert not keeps_growing([START] * 10, START, START)
    assert not keeps_growing([START] * 10, START, START - 1)


def test_what_was_made_outside_the_window_does_not_count() -> None:
    assert not keeps_growing([START - 10, START + WINDOW // 2, END + 10], START, END)
