# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.diagnosis.timeseries import period

SECOND = 1_000_000_000


@given(
    seconds=st.floats(0.01, 3600),
    count=st.integers(4, 200),
    jitter=st.floats(0, 0.03),
    seed=st.integers(0, 1 << 30),
)
def test_regular_events_have_a_period(seconds: float, count: int, jitter: float, seed: int) -> None:
    draw = random.Random(seed)
    times = [int((number + jitter * draw.random()) * seconds * SECOND) for number in range(count)]
    draw.shuffle(times)
    assert period(times) == pytest.approx(seconds, rel=0.07)


def test_a_batch_counts_once() -> None:
    times = [minute * 60 * SECOND + number * 1000 for minute in range(5) for number in range(3)]
    assert period(times) == pytest.approx(60.0, rel=1e-3)


@given(st.lists(st.integers(0, 10**12), max_size=3))
def test_three_events_show_no_period(times: list[int]) -> None:
    assert period(times) is None


@given(count=st.integers(4, 40), ratio=st.floats(1.3, 3))
def test_events_that_slow_down_have_none(count: int, ratio: float) -> None:
    assert period([int(SECOND * ratio**number) for number in range(count)]) is None


@given(
    count=st.integers(6, 19),
    late=st.data(),
    delay=st.floats(0, 0.75),
    drifts=st.booleans(),
    seed=st.integers(),
)
def test_one_late_event_hides_no_period(
    count: int, late: st.DataObject, delay: float, drifts: bool, seed: int
) -> None:
    """Of a timer that keeps its grid, and of one that starts anew when it was late."""
    draw = random.Random(seed)
    which = late.draw(st.integers(0, count - 1))
    times = []
    for number in range(count):
        is_delayed = number >= which if drifts else number == which
        times.append(int((number + (delay if is_delayed else 0) + 0.02 * draw.random()) * SECOND))
    assert period(times) == pytest.approx(1, rel=0.05)


@given(count=st.integers(6, 19), delays=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)))
def test_two_late_events_among_few_do(count: int, delays: tuple[float, float]) -> None:
    times = list(range(0, count * SECOND, SECOND))
    for index, delay in zip((1, 4), delays):
        times[index] += int(delay * SECOND)
    assert period(times) is None


@given(long=st.floats(1.3, 2.5), count=st.integers(5, 40))
def test_long_and_short_in_turn_are_no_period(long: float, count: int) -> None:
    times = [0.0]
    for number in range(count):
        times.append(times[-1] + (1 if number % 2 else long))
    assert period([int(time * SECOND) for time in times]) is None


@pytest.mark.parametrize("events", [5, 6, 7, 8, 10, 15, 30])
def test_a_random_process_seldom_readings_regular(events: int) -> None:
    draw = random.Random(1)
    regular = 0
    for _ in range(2000):
        time, times = 0.0, []
        for _ in range(events):
            time += draw.expovariate(1)
            times.append(int(time * SECOND))
        regular += period(times) is not None
    assert regular <= 10


def test_a_loop_is_no_timer() -> None:
    assert period([number * 28_000 for number in range(10)]) is None


@given(st.integers(0, 10**12), st.integers(0, 100))
def test_events_of_one_moment_have_none(time: int, count: int) -> None:
    assert period([time] * count) is None
