# SPDX-License-Identifier: Apache-2.0
"""The main job on programs for each verdict and programs that resemble them, compared with their own output.

All programs of a table are traced by one session: some were at work before it, all are during it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import jsonschema
import pytest
from harness import (
    SCHEMA,
    Area,
    Json,
    Program,
    Tracer,
    build,
    eventually,
    leaks,
    mapped,
    minus,
    reported,
    run_tracer,
    traced,
)
from programs import compiled
from verdict_programs import BEFORE, CACHED, GLIBC, GUARD, OTHERS, STACK, THREADS, Case, Leak

from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.target import open_target
from ebpftrace.sessions import leak_watch
from ebpftrace.sessions.ending import Libcs
from ebpftrace.sessions.leak_watch import LeakWatch
from ebpftrace.unwind.engine import Engine
from ebpftrace.vmas import Vmas

_ROOM = 20_000
"""Mappings of all programs together: the default is the most that each may have."""
_DEFAULT_CACHE = 40 << 20


@dataclass(frozen=True)
class Traced:
    """A program whose hazard has happened, and what the trace said of it."""

    program: Program
    report: Json


@dataclass(frozen=True)
class Skipped:
    """A program that this machine can't build or run."""

    why: str


Outcome = Union[Traced, Skipped]


def trace_all(cases: Mapping[str, Case], directory: Path, held: ExitStack) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    programs: dict[str, Program] = {}
    for name, case in cases.items():
        try:
            binary = case.make(directory)
        except pytest.skip.Exception as skip:
            outcomes[name] = Skipped(str(skip))
            continue
        environment = {**os.environ, **dict(case.environment)}
        program = Program(binary, *case.arguments, env=environment, cwd=directory)
        programs[name] = held.enter_context(program)
    pids = [option for program in programs.values() for option in ("-p", program.pid)]
    with Tracer(*pids, "--until-interrupt", "--min-age", 0, "--max-mappings", _ROOM) as tracer:
        for program in programs.values():
            program.run()
        result = tracer.interrupt()
    reports = reports_by_pid(result.stdout)
    for name, program in programs.items():
        outcomes[name] = Traced(program, reports[program.pid])
    return outcomes


def reports_by_pid(text: str) -> dict[int, Json]:
    reports = [json.loads(line) for line in text.splitlines()]
    schema = json.loads(SCHEMA.read_text())
    for report in reports:
        jsonschema.validate(report, schema)
    return {report["target"]["pid"]: report for report in reports}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    directory = tmp_path_factory.mktemp("verdicts")
    build("healthy")
    with ExitStack() as held:
        yield {**trace_all(GLIBC, directory, held), **trace_all(OTHERS, directory, held)}


def outcome_of(outcomes: dict[str, Outcome], name: str) -> Traced:
    outcome = outcomes[name]
    if isinstance(outcome, Skipped):
        pytest.skip(outcome.why)
    return outcome


def of_verdict(report: Json, verdict: str) -> list[Json]:
    return [finding for finding in report["findings"] if finding["verdict"] == verdict]


def areas(mappings: list[Json]) -> list[Area]:
    return sorted((int(mapping["start"], 16), int(mapping["end"], 16)) for mapping in mappings)


def stacks(program: Program) -> list[Area]:
    """Stacks of all threads of lists_threads, as it printed them."""
    return sorted((fact["start"], fact["start"] + fact["length"]) for fact in program.facts("thread"))


@pytest.mark.parametrize("name", [*GLIBC, *OTHERS])
def test_verdict(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcome_of(outcomes, name)
    case = {**GLIBC, **OTHERS}[name]
    found = leaks(outcome.report)
    times = [mapping["mapped_at"] for finding in found for mapping in finding["mappings"]]
    before = times.count(None)
    inside = len(times) - before
    verdicts = {finding["verdict"] for finding in found}
    if case.leak is None:
        assert not found
    else:
        assert [Leak(verdict, before, inside) for verdict in verdicts] == [case.leak]
    if case.routine:
        assert {finding["start_routine"]["function"] for finding in found} == {case.routine}
    if case.creator:
        assert {advised(finding, case.creator) for finding in found} == {True}
    losses = outcome.report["losses"]
    assert not losses["events"] + losses["mappings"] + losses["threads"]
    owned = sum(thread["mappings"] for thread in outcome.report["threads"])
    assert owned <= outcome.report["outstanding"]["mappings"]


def advised(finding: Json, function: str) -> bool:
    """Whether the advice and the stack name the function that made the mappings."""
    return function in finding["advice"] and function in [
        frame["function"] for frame in finding["stack"]["frames"]
    ]


@pytest.mark.parametrize("name", [name for name, case in GLIBC.items() if case.leak and "user" not in name])
def test_stacks_are_those_the_program_reported_of(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcome_of(outcomes, name)
    if name == "raw clone":
        facts = outcome.program.facts("mapped")
        expected = sorted((fact["start"], fact["start"] + fact["length"]) for fact in facts)
    else:
        expected = stacks(outcome.program)
    assert (
        areas([mapping for finding in leaks(outcome.report) for mapping in finding["mappings"]]) == expected
    )


@pytest.mark.parametrize("name", ["joined", "reversed", "detached late", "static joined"])
def test_stacks_of_joined_threads_are_cached(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcome_of(outcomes, name)
    cached = areas(reported(outcome.report, "stack-cache"))
    assert len(cached) == THREADS - BEFORE
    assert not minus(cached, stacks(outcome.program))
    (finding,) = of_verdict(outcome.report, "stack-cache")
    assert sum(site["count"] for site in finding["sites"]) <= len(cached)
    shown = [site["stack"] for site in finding["sites"] if site["stack"]["complete"]]
    assert shown
    assert all("main" in [frame["function"] for frame in stack["frames"]] for stack in shown)
    assert finding["stack"] == finding["sites"][0]["stack"]


@pytest.mark.parametrize(
    ("name", "limit"),
    [(name, _DEFAULT_CACHE) for name in GLIBC if name.startswith("cache ") and "exactly" not in name]
    + [("cache exactly full", 5 * (STACK + GUARD)), ("small cache", 1_000_000), ("no cache", 0)],
)
def test_the_cache_is_reported_as_it_is(outcomes: dict[str, Outcome], name: str, limit: int) -> None:
    outcome = outcome_of(outcomes, name)
    expected = stacks(outcome.program)
    size = expected[0][1] - expected[0][0]
    cached = areas(reported(outcome.report, "stack-cache"))
    assert len(cached) == min(len(expected), limit // size)
    assert set(cached) <= set(expected)
    assert not minus(cached, mapped(outcome.program.pid))


def test_one_reused_stack_is_one_cached_stack(outcomes: dict[str, Outcome]) -> None:
    """Detached threads, one after the other, all ran on the stack of the first: one from before attach."""
    outcome = outcome_of(outcomes, "detached")
    assert areas(reported(outcome.report, "stack-cache")) == sorted(set(stacks(outcome.program)))


def test_stacks_of_the_jvm_are_cached_in_their_full_size(outcomes: dict[str, Outcome]) -> None:
    outcome = outcome_of(outcomes, "Java")
    (finding,) = of_verdict(outcome.report, "stack-cache")
    assert {mapping["bytes"] for mapping in finding["mappings"]} == {1 << 20}


@pytest.mark.parametrize(("name", "limit"), [("arenas", 0), ("one arena", 1), ("64 arenas", 64)])
def test_arenas(outcomes: dict[str, Outcome], name: str, limit: int) -> None:
    outcome = outcome_of(outcomes, name)
    heaps = {fact["heap"] for fact in outcome.program.facts("block")}
    arenas = reported(outcome.report, "malloc-arena")
    limit = limit or 8 * (os.cpu_count() or 1)
    # A block in the main arena is in no heap: the areas it lies in begin elsewhere.
    assert len(arenas) == min(20, limit - 1 if limit <= 20 else 20)
    assert {int(mapping["start"], 16) for mapping in arenas} <= heaps
    for finding in of_verdict(outcome.report, "malloc-arena"):
        assert not any("conflicting" in line for line in finding["evidence"])
        assert any(f"at most {limit} arenas" in line for line in finding["evidence"])


def test_without_thread_lists_it_cannot_be_reported_whether_stacks_are_cached(
    outcomes: dict[str, Outcome],
) -> None:
    """glibc's own list of cached stacks refers to each that is joined, and nothing tells it from another."""
    outcome = outcome_of(outcomes, "stripped returns")
    found = of_verdict(outcome.report, "stack-cache")
    assert all(finding["undecided"] and not finding["leak"] for finding in found)
    assert sum(finding["count"] for finding in found) == THREADS
    assert outcome.report["undecided"] == THREADS
    assert any("no thread lists of glibc" in note for note in outcome.report["notes"])


@pytest.mark.parametrize("name", ["handles kept", "std::thread lost"])
def test_who_can_still_be_joined_is_not_joined_yet(outcomes: dict[str, Outcome], name: str) -> None:
    """The second program has lost the objects that hold the handles, but they are in its heap."""
    outcome = outcome_of(outcomes, name)
    found = of_verdict(outcome.report, "not-joined-yet")
    assert sum(finding["count"] for finding in found) == THREADS
    assert {finding["certainty"] for finding in found} == {"possible"}
    places = {holder["where"] for finding in found for holder in finding["reach"]["holders"]}
    assert ("global" if name == "handles kept" else "heap") in places
    assert outcome.report["undecided"] == 0


def test_the_verdict_without_a_trace(outcomes: dict[str, Outcome]) -> None:
    """``-d 0``: what is on glibc's thread lists, in the whole, and nothing of what only a trace can see."""
    names = [name for name, case in GLIBC.items() if name not in ("forked",)]
    runs = {name: outcome_of(outcomes, name) for name in names}
    pids = [option for run in runs.values() for option in ("-p", run.program.pid)]
    reports = reports_by_pid(run_tracer(*pids, "-d", 0, "--json", "--min-age", 0, "--top", 1000).stdout)
    for name, run in runs.items():
        report, leak = reports[run.program.pid], GLIBC[name].leak
        wanted = 0 if leak is None or leak.before == 0 else leak.before + leak.inside
        assert (name, sum(finding["count"] for finding in leaks(report))) == (name, wanted)
        assert all(finding["before_attach"] for finding in report["findings"])
        assert report["window"]["seconds"] == 0


def test_what_leaked_before_is_reported_while_the_trace_goes_on(tmp_path: Path) -> None:
    size = BEFORE * (STACK + GUARD) >> 10
    made = Program(compiled(tmp_path, "lists_threads"), "returns", THREADS, STACK, BEFORE)
    with made as program, traced(program, "--min-age", 0) as tracer:
        line = tracer.wait_to_say("before")
        program.run()
        report = tracer.interrupt().report
    assert line == (
        f"before the trace: {BEFORE} threads have exited and are not joined so far, {size} KiB of stacks; "
        f"they ran returns ({BEFORE}); the report will say whether they still can be"
    )
    (finding,) = leaks(report)
    assert (finding["count"], finding["certainty"]) == (THREADS, "proved")
    assert f"{BEFORE} of them exited before the trace began" in finding["evidence"]


def test_threads_that_come_while_attaching_are_not_counted_without_their_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Program(compiled(tmp_path, "lists_threads"), "returns", THREADS, STACK, BEFORE)
    with (
        made as program,
        Engine() as engine,
        open_target(program.pid) as held,
        LeakWatch(held, engine, Libcs(), min_age=0, wants_stacks=False) as watch,
    ):

        def read_and_wait(pid: int) -> Vmas:
            vmas = read_maps(pid)
            program.run()
            return vmas

        monkeypatch.setattr(leak_watch, "read_maps", read_and_wait)
        watch.read_beforehand()
        before = watch.unjoined_before()
    assert (before.threads, before.size) == (BEFORE, BEFORE * (STACK + GUARD))


def test_joined_in_turn(tmp_path: Path) -> None:
    """A loop of joins waits for the first thread while the others have exited long ago."""
    with Program(compiled(tmp_path, "lists_threads"), "in-turn", THREADS, CACHED) as program:
        with traced(program, "--min-age", 0) as tracer:
            begun = time.monotonic()
            program.go()
            program.wait_for("ended")
            asleep_in_join(program.pid)
            # Exits all over the window would be growth, and so a leak.
            over = 5 * time.monotonic() - 4 * begun
            eventually(lambda: time.monotonic() > over, "the threads ended at the window's beginning")
            traced_report = tracer.interrupt().report
        alone = run_tracer("-p", program.pid, "-d", 0, "--json", "--min-age", 0).report
        program.go()
        program.wait_for("done")
    for report in (traced_report, alone):
        assert not leaks(report)
        assert areas(reported(report, "not-joined-yet")) == sorted(
            (fact["start"], fact["start"] + fact["length"]) for fact in program.facts("thread")[1:]
        )


def asleep_in_join(pid: int) -> None:
    call = Path(f"/proc/{pid}/task/{pid}/wchan")
    eventually(lambda: "futex" in call.read_text(), "the initial thread waits in pthread_join")


def test_joined_late(tmp_path: Path) -> None:
    """Between exit and join a thread is not joined yet: its handle is kept."""
    with Program(compiled(tmp_path, "lists_threads"), "late", THREADS, CACHED) as program:
        with traced(program, "--min-age", 3600) as tracer:
            program.go()
            program.wait_for("ended")
            early = tracer.interrupt().report
        program.go()
        program.wait_for("done")
        late = run_tracer("-p", program.pid, "-d", 0, "--json", "--min-age", 0).report
    assert not leaks(early)
    assert areas(reported(early, "not-joined-yet")) == stacks(program)
    assert late["findings"] == []
