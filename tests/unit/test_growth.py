# SPDX-License-Identifier: Apache-2.0
"""Growth: what changed between two moments, merged, and reported."""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Optional

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import CLOCK, SECOND, STACK_BYTES, TIMER_STACK
from rich.cells import cell_len

from ebpftrace.callflags import MAP_GROWSDOWN
from ebpftrace.model import (
    NO_STACK,
    SIZE_UNKNOWN,
    Calls,
    EndedBy,
    Frame,
    Interval,
    Losses,
    Mapping,
    Stack,
    TargetInfo,
    Thread,
    ThreadId,
    TracerCost,
)
from ebpftrace.report import growth, growth_json
from ebpftrace.report.growth import can_draw, sparkline
from ebpftrace.sessions.growth_watch import Trail
from ebpftrace.size_changes.causes import Names, Place, group, regular
from ebpftrace.size_changes.model import MAKING, Cause, Change, How, Regular, SiteGrowth, Size, Step, Summary
from ebpftrace.size_changes.outstanding import OutstandingBytes, OutstandingNow, changes, outstanding_now

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "ebpftrace" / "report" / "schema" / "growth-1.json").read_text()
)
KIB = 1024
THREADS = [ThreadId(tid, started_at) for tid, started_at in ((7, 1), (8, 2), (7, 3))]
threads = st.sampled_from(THREADS)
sites = st.integers(1, 4)
sizes = st.integers(1, 1 << 30)
held = st.builds(
    OutstandingBytes, sizes, sites, st.sampled_from(MAKING), st.sampled_from([How.MREMAP, How.FAULT])
)
standings = st.builds(
    OutstandingNow,
    made=st.dictionaries(st.tuples(threads, st.integers(1, 6)), held, max_size=8),
    before_attach=st.integers(0, 1 << 40),
    brk_by_thread=st.dictionaries(threads, st.integers(-9, 9)),
    brk_by_site=st.dictionaries(sites, st.integers(-9, 9)),
    brk_callers=st.dictionaries(sites, st.frozensets(st.sampled_from([7, 8]), max_size=2)),
)


def total(outstanding_now: OutstandingNow) -> int:
    made = sum(held.size for held in outstanding_now.made.values())
    return made + outstanding_now.before_attach + sum(outstanding_now.brk_by_thread.values())


# --- changes ---------------------------------------------------------------------------------


@given(standings, standings)
def test_changes_add_up(before: OutstandingNow, after: OutstandingNow) -> None:
    assert sum(change.size for change in changes(before, after)) == total(after) - total(before)


@given(standings)
def test_nothing_changed(outstanding_now: OutstandingNow) -> None:
    assert changes(outstanding_now, outstanding_now) == []


@given(standings, standings)
def test_the_sign_reports_the_call(before: OutstandingNow, after: OutstandingNow) -> None:
    for change in changes(before, after):
        assert change.size != 0
        if change.how in (*MAKING, How.MREMAP, How.FAULT):
            assert change.size > 0
        elif change.how is How.MUNMAP:
            assert change.size < 0


@given(standings, standings)
def test_no_thread_is_reported_more_of_the_break_than_it_moved(
    before: OutstandingNow, after: OutstandingNow
) -> None:
    for thread in THREADS:
        listed = [one for one in changes(before, after) if one.how is How.BRK and one.thread == thread]
        moved = after.brk_by_thread.get(thread, 0) - before.brk_by_thread.get(thread, 0)
        assert not listed or sum(change.size for change in listed) == moved


NOTHING = OutstandingNow({}, 0, {}, {}, {})
FIRST, SECOND_THREAD = THREADS[:2]


def test_break_moved_by_two_threads_at_two_sites() -> None:
    after = NOTHING._replace(
        brk_by_thread={FIRST: 100, SECOND_THREAD: 30},
        brk_by_site={1: 100, 2: 30},
        brk_callers={1: {FIRST.tid}, 2: {SECOND_THREAD.tid}},
    )
    assert changes(NOTHING, after) == [
        Change(How.BRK, 100, FIRST, 1),
        Change(How.BRK, 30, SECOND_THREAD, 2),
    ]
    unseen = after._replace(brk_callers={})
    assert {change.thread for change in changes(NOTHING, unseen)} == {None}


def test_mapping_that_grows_shrinks_and_goes() -> None:
    key = (FIRST, 5)
    small, large = (NOTHING._replace(made={key: OutstandingBytes(size, 9)}) for size in (10, 30))
    assert changes(NOTHING, small) == [Change(How.MMAP, 10, FIRST, 9, 5)]
    assert changes(small, large) == [Change(How.MREMAP, 20, FIRST, 9, 5)]
    assert changes(large, small) == [Change(How.MUNMAP, -20, FIRST, 9, 5)]
    assert changes(small, NOTHING) == [Change(How.MUNMAP, -10, FIRST, 9, 5)]


def test_a_mapping_has_the_call_that_made_it_and_that_by_which_it_grows() -> None:
    def mapping(at: int, prot: Optional[int], file: str, flags: int = 1, size: int = 10) -> Mapping:
        return Mapping((Interval(at, at + size),), at, FIRST, prot, flags, 9, at, file=file)

    def stood(*mappings: Mapping) -> OutstandingNow:
        return outstanding_now(mappings, {}, {}, {})

    segment = mapping(100, None, "/SYSV00000000 (deleted)")
    ring = mapping(200, None, "/[aio] (deleted)")
    plain = mapping(300, 3, "/SYSV-is-my-name")
    unknown = mapping(400, SIZE_UNKNOWN, "")
    made = changes(NOTHING, stood(segment, ring, plain, unknown))
    assert [one.how for one in made] == [How.SHMAT, How.IO_SETUP, How.MMAP, How.MMAP]
    down, grown = (mapping(500, 3, "", MAP_GROWSDOWN, size) for size in (10, 30))
    assert changes(stood(down), stood(grown)) == [Change(How.FAULT, 20, FIRST, 9, 500)]


# --- causes ----------------------------------------------------------------------------------


def thread(identity: ThreadId, name: str) -> Thread:
    return Thread(identity, name, identity.tid)


def test_threads_of_one_name_at_one_place_are_one_cause() -> None:
    known = {FIRST: thread(FIRST, "worker"), SECOND_THREAD: thread(SECOND_THREAD, "worker")}
    names = Names(
        known.get, lambda change: Place(change.site % 2), lambda place: TIMER_STACK if place else NO_STACK
    )
    made = [
        Change(How.MMAP, 10, FIRST, 1, 1),
        Change(How.MMAP, 20, SECOND_THREAD, 3, 2),
        Change(How.MMAP, 5, FIRST, 2, 3),
        Change(How.MUNMAP, -50, None, 0, before_attach=True),
    ]
    gone, workers, elsewhere = (one.cause for one in group(made, names))
    assert (gone.size, gone.threads, gone.before_attach, gone.mappings) == (-50, (), True, 0)
    assert (workers.size, workers.mappings, workers.stack) == (30, 2, TIMER_STACK)
    assert [one.id for one in workers.threads] == [FIRST, SECOND_THREAD]
    assert (elsewhere.size, elsewhere.stack) == (5, NO_STACK)


# --- regular ---------------------------------------------------------------------------------


@given(st.floats(0.1, 3600), st.integers(7, 100), st.integers(0, 2**32))
def test_leak_of_a_timer_is_reported_with_its_step(seconds: float, turns: int, seed: int) -> None:
    jitter = random.Random(seed)
    late = [jitter.random() * 0.02 for _ in range(turns)]
    times = [round((turn + late[turn]) * seconds * SECOND) for turn in range(1, turns)]
    found = regular(times, STACK_BYTES * len(times), 0, round(turns * seconds * SECOND))
    assert found is not None
    assert found.period == pytest.approx(seconds, rel=0.05)
    assert found.step == STACK_BYTES


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([1, 2, 3, 5, 6, 7, 8], id="one turn left out"),
        pytest.param([1, 2, 3, 5.97, 5.98, 6, 7, 8, 9], id="three at once after a hiccup"),
        pytest.param([turn + 0.05 * (turn % 2) for turn in range(1, 40)], id="every second one late"),
    ],
)
def test_a_step_is_what_each_turn_brought(times: list[float]) -> None:
    end = round((times[-1] + 1) * SECOND)
    found = regular([round(time * SECOND) for time in times], STACK_BYTES * len(times), 0, end)
    assert found is not None
    assert found.step == STACK_BYTES


@pytest.mark.parametrize(
    "times",
    [
        pytest.param([1, 2, 3], id="too few"),
        pytest.param([1, 2, 3, 4, 5, 6], id="a burst at the start"),
        pytest.param([95, 96, 97, 98, 99], id="young ones only"),
        pytest.param([10, 30, 35, 60, 62, 90, 99], id="irregular"),
    ],
)
def test_no_period(times: list[int]) -> None:
    assert regular([time * SECOND for time in times], 1 << 20, 0, 100 * SECOND) is None


def test_what_shrinks_has_no_period() -> None:
    assert regular([time * SECOND for time in range(10)], -1, 0, 10 * SECOND) is None


# --- text and JSON ---------------------------------------------------------------------------

TIMER = thread(ThreadId(31152, 5), "timer")
LEAK = Cause(How.MMAP, 6 * STACK_BYTES, 6, (TIMER,), TIMER_STACK)
NOW = CLOCK.monotonic_ns
BEFORE = Size(NOW - 360 * SECOND, 300 << 30, 4 << 30)
AFTER = Size(NOW, (300 << 30) + 6 * STACK_BYTES, (4 << 30) + 4096)
SUMMARY = Summary(
    target=TargetInfo(31108, "app_server", "/opt/app_server"),
    clock=CLOCK,
    ended_by=EndedBy.DURATION,
    whole=Step(BEFORE, AFTER, (LEAK,), BEFORE),
    sites=(SiteGrowth(LEAK, Regular(60.0, STACK_BYTES)),),
    calls=Calls(mmap=6),
    losses=Losses(),
    sizes=tuple(range(0, 700, 100)),
    cost=TracerCost(0.5),
)
text_of_targets = st.text(max_size=40)
frames = st.builds(
    Frame,
    function=st.none() | text_of_targets,
    file=st.none() | text_of_targets,
    line=st.none() | st.integers(0, 10**6),
    module=st.none() | text_of_targets,
    offset=st.none() | st.integers(0, 2**48),
    inlined=st.booleans(),
)
stacks = st.builds(Stack, frames=st.lists(frames, max_size=30).map(tuple), note=text_of_targets)
causes = st.builds(
    Cause,
    how=st.sampled_from(How),
    size=st.integers(-(2**40), 2**40),
    mappings=st.integers(0, 10**6),
    threads=st.lists(
        st.builds(
            Thread, st.builds(ThreadId, st.integers(1, 2**22), st.just(1)), text_of_targets, st.just(1)
        ),
        max_size=3,
    ).map(tuple),
    stack=stacks,
    before_attach=st.booleans(),
)
steps = st.builds(
    Step,
    before=st.just(BEFORE),
    after=st.builds(Size, st.just(NOW), st.integers(0, 2**47), st.integers(0, 2**40)),
    causes=st.none() | st.lists(causes, max_size=6).map(tuple),
    since=st.sampled_from([BEFORE, BEFORE._replace(at=BEFORE.at - SECOND)]),
)
regulars = st.none() | st.builds(Regular, st.floats(0.01, 1e5), st.integers(1, 2**40))
summaries = st.builds(
    Summary,
    target=st.builds(TargetInfo, st.just(31108), text_of_targets, text_of_targets),
    clock=st.just(CLOCK),
    ended_by=st.sampled_from([EndedBy.DURATION, EndedBy.INTERRUPT, EndedBy.TARGET_EXIT, EndedBy.EXEC]),
    whole=steps,
    sites=st.lists(st.builds(SiteGrowth, causes, regulars), max_size=15).map(tuple),
    calls=st.just(Calls()),
    losses=st.builds(Losses, events=st.integers(0, 9)),
    sizes=st.lists(st.integers(0, 2**47), min_size=1, max_size=200).map(tuple),
    notes=st.lists(text_of_targets, max_size=2).map(tuple),
    cost=st.none() | st.just(TracerCost(0.5)),
)


@pytest.mark.parametrize(("sizes", "listed"), [((0, 0, 9, 9), False), ((0, 4, 9, 9), True)])
def test_one_rise_has_no_rate(sizes: tuple[int, ...], listed: bool) -> None:
    (memory,) = (
        line
        for line in growth.summary(replace(SUMMARY, sizes=sizes), curve=False).splitlines()
        if line.startswith("memory ")
    )
    assert ("10244 KiB per minute" in memory) is listed


def is_plain(page: str, width: int = 100) -> bool:
    return all(
        line == line.rstrip()
        and cell_len(line) <= width
        and not any(unicodedata.category(character).startswith("C") for character in line)
        for line in page.split("\n")
    )


@settings(max_examples=60)
@given(steps, summaries, st.sampled_from([60, 80, 100]))
def test_hostile_names_keep_to_the_page(step: Step, summary: Summary, width: int) -> None:
    assert is_plain(growth.title(summary.target, step.after, width=width), width)
    assert is_plain(growth.columns(width=width, of_several=True), width)
    assert is_plain(growth.step(step, CLOCK, pid=1 << 22, width=width), width)
    assert is_plain(growth.step(step, CLOCK, width=width), width)
    assert is_plain(growth.summary(summary, curve=True, width=width), width)


@pytest.mark.parametrize(("width", "lines"), [(100, 1), (80, 1), (60, 2)])
def test_a_narrow_terminal_has_the_cause_beside_the_sizes_or_below_them(width: int, lines: int) -> None:
    one = replace(LEAK, size=STACK_BYTES)
    grown = Step(BEFORE, BEFORE._replace(at=NOW, virt=BEFORE.virt + STACK_BYTES), (one,), BEFORE)
    listed = growth.step(grown, CLOCK, width=width).splitlines()
    assert len(listed) == lines
    assert "+10244 mmap timer: " in listed[-1]
    assert ("BY" in growth.columns(width=width)) is (lines == 1)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_is_reported_every_place_of_the_summary(width: int) -> None:
    page = growth.summary(SUMMARY, curve=False, width=width)
    for frame in TIMER_STACK.frames:
        assert not frame.offset or f"+0x{frame.offset:x}" in page


@settings(max_examples=60)
@given(steps, summaries)
def test_json_keeps_its_contract(step: Step, summary: Summary) -> None:
    for line in (growth_json.step(step, CLOCK, 7), growth_json.summary(summary)):
        assert line.isascii()
        assert line.count("\n") == 1
        jsonschema.validate(json.loads(line), SCHEMA)


def test_summary_reports_period_step_thread_and_place() -> None:
    page = growth.summary(SUMMARY, curve=False)
    first = " ".join(page.split("\n\n")[0].split())
    assert first.startswith("PERIOD: +10244 KiB every 60 s, thread 'timer', acme::spawn<&acme::minute_job>")
    assert "acme::Timer::run() timer.cpp:87" in first
    assert "VIRT by call, thread and place, net over the window" in page  # RSS has a table of its own
    assert page.isascii()
    assert "No period" in growth.summary(replace(SUMMARY, sites=(SiteGrowth(LEAK),)), curve=False)


def test_step_without_growth_is_one_line() -> None:
    line = growth.step(Step(BEFORE, BEFORE._replace(at=NOW), (), BEFORE), CLOCK)
    assert line.split()[1:] == [str(300 << 20), "0", str(4 << 20), "0"]


def test_further_causes_and_unexplained_bytes_are_reported() -> None:
    causes = tuple(replace(LEAK, size=size * KIB) for size in (50, 40, 30, 20, 10))
    lines = growth.step(
        Step(BEFORE, BEFORE._replace(at=NOW, virt=BEFORE.virt + 157 * KIB), causes, BEFORE), CLOCK
    ).splitlines()
    assert "+157" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["+40", "+30", "+30", "+7"]
    assert lines[-2].strip() == "+30 by 2 more causes"
    assert lines[-1].strip() == "+7 unexplained"


def test_causes_of_several_intervals_say_so() -> None:
    now = BEFORE._replace(at=NOW, virt=BEFORE.virt + STACK_BYTES)
    sized = Step(BEFORE, now, None, BEFORE)
    assert sized.unexplained == 0
    assert growth.step(sized, CLOCK).split()[1:] == [str(now.virt // KIB), "+10244", str(4 << 20), "0"]
    examined = Step(now, now, (replace(LEAK, size=STACK_BYTES),), BEFORE)
    assert examined.unexplained == 0
    assert "in 6 min:" in growth.step(examined, CLOCK)


# --- the curve -------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**60), min_size=1), st.integers(1, 80))
def test_curve_fits_and_ends_where_it_ends(values: list[int], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) <= width
    if drawn and values[-1] == max(values):
        assert drawn[-1] == "\u2588"


def test_curve() -> None:
    assert sparkline([1, 1, 1], 10) == ""
    assert sparkline([0, 7], 10) == "\u2581\u2588"
    assert can_draw("utf-8")
    assert can_draw(None)
    assert not can_draw("ascii")


@given(st.integers(0, 5000))
def test_trail_is_bounded_and_even(number: int) -> None:
    trail = Trail(0)
    for size in range(1, number + 1):
        trail.add(size)
    assert len(trail.sizes) <= 1024
    gaps = {later - earlier for earlier, later in zip(trail.sizes, trail.sizes[1:])}
    assert len(gaps) <= 1
