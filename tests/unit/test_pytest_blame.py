# SPDX-License-Identifier: Apache-2.0
"""Which test or fixture unjoined threads are laid to, and the plugin where nothing is traced."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import (
    Certainty,
    Clock,
    Finding,
    Interval,
    Mapping,
    Orphan,
    Outstanding,
    OwnedBy,
    Report,
    Thread,
    ThreadId,
    Verdict,
)
from ebpftrace.pytest_blame import UNJOINED, Span, blame, place_of

PYTEST, WORKER, CHILD, GRANDCHILD = 100, 101, 200, 300
S = 1_000_000_000


def orphan(started: int, *, mapped: int | None = None) -> Orphan:
    mapping = Mapping((Interval(0x1000, 0x2000),), mapped or started, None, None, None, 0)
    owner = Thread(ThreadId(7, started), "worker", CHILD, exited_at=started + 1)
    return Orphan(Outstanding(mapping, owner, OwnedBy.RUNS_ON_IT, None), 0)


def finding(*started: int, verdict: Verdict = Verdict.NEVER_JOINED, leak: bool = True) -> Finding:
    return Finding(
        verdict, leak, (), "", False, tuple(map(orphan, started)), None, certainty=Certainty.PROVED
    )


def report(
    pid: int, *findings: Finding, parent: int | None = None, began: int = 0, ended: int = 100
) -> Report:
    base = reports.healthy()
    return replace(
        base,
        target=replace(base.target, pid=pid, parent=parent),
        findings=findings,
        clock=Clock(0, 0),
        ended_at=ended * S,
        seconds=float(ended - began),
    )


def test(name: str, begin: int, end: int) -> Span:
    return Span(begin * S, end * S, name, True)


test.__test__ = False  # type: ignore[attr-defined]


def places(found: dict[str, list[object]]) -> dict[str, int]:
    return {place: sum(one.finding.count for one in left) for place, left in found.items()}  # type: ignore[attr-defined]


def blamed(several: list[Report], spans: dict[int, list[Span]]) -> dict[str, int]:
    return places(blame(several, spans))  # type: ignore[arg-type]


def test_each_thread_is_laid_to_the_test_that_ran_when_it_started() -> None:
    spans = {PYTEST: [test("a", 0, 10), test("b", 10, 20), test("c", 21, 30)]}
    assert blamed([report(PYTEST, finding(1 * S, 15 * S, 16 * S, 25 * S))], spans) == {"a": 1, "b": 2, "c": 1}


def test_of_spans_within_each_other_the_innermost_counts() -> None:
    spans = {PYTEST: [test("a", 0, 10), Span(2 * S, 5 * S, "fixture server (module scope)", False)]}
    assert blamed([report(PYTEST, finding(3 * S, 7 * S))], spans) == {
        "fixture server (module scope)": 1,
        "a": 1,
    }


def test_what_started_between_tests_is_laid_to_none() -> None:
    spans = {PYTEST: [test("a", 0, 10), test("b", 20, 30)]}
    assert blamed([report(PYTEST, finding(15 * S))], spans) == {"": 1}


def test_a_stack_that_was_used_before_does_not_blame_the_first_user() -> None:
    reused = replace(finding(25 * S), orphans=(orphan(25 * S, mapped=5 * S),))
    spans = {PYTEST: [test("a", 0, 10), test("b", 20, 30)]}
    assert blamed([report(PYTEST, reused)], spans) == {"b": 1}


def test_workers_run_tests_at_the_same_time() -> None:
    spans = {PYTEST: [], WORKER: [test("a", 0, 10)], WORKER + 1: [test("b", 0, 10)]}
    several = [
        report(PYTEST),
        report(WORKER, finding(3 * S), parent=PYTEST),
        report(WORKER + 1, finding(3 * S), parent=PYTEST),
    ]
    assert blamed(several, spans) == {"a": 1, "b": 1}


def test_a_child_belongs_to_the_test_that_started_it_whenever_its_threads_started() -> None:
    spans = {PYTEST: [], WORKER: [test("a", 0, 10), test("b", 10, 20)], WORKER + 1: [test("c", 0, 20)]}
    child = report(CHILD, finding(15 * S), parent=WORKER, began=4)
    grandchild = report(GRANDCHILD, finding(16 * S), parent=CHILD, began=12)
    assert blamed([child, grandchild], spans) == {"a": 2}


@pytest.mark.parametrize("parent", [None, 999, CHILD])
def test_a_child_whose_parents_are_not_known_is_laid_to_none(parent: int | None) -> None:
    child = report(CHILD, finding(3 * S), parent=parent, began=1)
    assert blamed([child], {PYTEST: [test("a", 0, 10)]}) == {"": 1}


@pytest.mark.parametrize("verdict", Verdict)
def test_what_counts(verdict: Verdict) -> None:
    counts = {*UNJOINED, Verdict.ABANDONED_STACK}
    spans = {PYTEST: [test("a", 0, 10)]}
    found = blamed([report(PYTEST, finding(S, verdict=verdict))], spans)
    assert found == ({"a": 1} if verdict in counts else {})
    healthy = blamed([report(PYTEST, finding(S, verdict=verdict, leak=False))], spans)
    assert healthy == ({"a": 1} if verdict in UNJOINED else {})


def test_threads_from_before_the_session_are_nobodys() -> None:
    before = Orphan(Outstanding(Mapping((Interval(0, 9),), None, None, None, None, 0), None, None, None), 0)
    found = replace(finding(), orphans=(before,), before_attach=True)
    assert blamed([report(PYTEST, found)], {PYTEST: [test("a", 0, 10)]}) == {}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=8), st.integers(0, 50))
def test_a_place_is_one_that_ran_then(borders: list[tuple[int, int]], moment: int) -> None:
    spans = [Span(min(pair), max(pair), str(number), True) for number, pair in enumerate(borders)]
    around = [span for span in spans if span.begin <= moment <= span.end]
    place = place_of(spans, moment)
    if not around:
        assert place == ""
    else:
        (chosen,) = (span for span in around if span.place == place)
        assert not [span for span in around if span.begin > chosen.begin]


def test_the_entry_module_imports_nothing_heavy() -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import ebpftrace.pytest_plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["ebpftrace", "ebpftrace.pytest_plugin"]


def run_inner(directory: Path, *options: str, ini: str = "") -> subprocess.CompletedProcess[str]:
    (directory / "pytest.ini").write_text(f"[pytest]\n{ini}")
    (directory / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.thread_leaks(limit=2)\n"
        "def test_it(thread_leaks): thread_leaks.assert_none()\n"
    )
    plugins = ("-p", "no:ebpftrace", "-p", "ebpftrace.pytest_plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *plugins, "--strict-markers", *options]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_off_the_marker_and_the_fixture_work_all_the_same(tmp_path: Path) -> None:
    ran = run_inner(tmp_path, "--thread-leaks=off", ini="thread_leaks = on\n")
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_a_mode_that_is_none_is_refused(tmp_path: Path) -> None:
    ran = run_inner(tmp_path, ini="thread_leaks = maybe\n")
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "thread_leaks is 'maybe' in the ini file: it can be auto, on, off" in ran.stderr


@pytest.mark.parametrize(
    ("file", "ini", "said"),
    [
        (".ebpftrace-suppressions", "", "does not begin with thread:"),
        ("known.json", "thread_leaks_baseline = known.json\n", "known.json is no baseline"),
    ],
)
def test_a_bad_file_is_told_before_anything_runs(tmp_path: Path, file: str, ini: str, said: str) -> None:
    (tmp_path / file).write_text("nonsense")
    ran = run_inner(tmp_path, "--thread-leaks=auto", ini=ini)
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in ran.stderr


def test_the_fixture_sees_no_thread_of_python() -> None:
    from ebpftrace.pytest_session import ThreadLeaks

    seen = ThreadLeaks()
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    seen.assert_none()
