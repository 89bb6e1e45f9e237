# SPDX-License-Identifier: Apache-2.0
"""Processes that end, judged at their death: verdict, count and exit status are exact."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from endings import CHOSEN
from harness import Json, Result, Target, build, leaks, no_losses, run_tracer, traced
from programs import MUSL, STATIC, STRIPPED, compiled

LEAK = 3


def finale(*arguments: object) -> Result:
    return run_tracer("--json", "-q", "--fail-on-leak", "--", build("finale"), *arguments)


def found(report: Json) -> list[tuple[str, int, str]]:
    """Verdict, count and certainty of the leaks."""
    return [(finding["verdict"], finding["count"], finding["evidence"][0]) for finding in leaks(report)]


@pytest.mark.parametrize(
    ("body", "tail_ms", "end", "number"),
    [
        ("leak5", 0, "return", 5),
        ("leak1", 2, "kill", 1),
        ("mixed", 0, "last", 2),
        ("cancelled", 50, "segv", 1),
    ],
)
def test_threads_that_nobody_joined(body: str, tail_ms: int, end: str, number: int) -> None:
    result = finale(body, tail_ms, end)
    assert result.status == LEAK
    reported = found(result.report)
    assert {verdict for verdict, _, _ in reported} == {"never-joined-thread"}
    assert sum(count for _, count, _ in reported) == number
    end_of_why = "had not been joined or detached when the process ended (proved)"
    assert all(why.endswith(end_of_why) for _, _, why in reported)
    assert result.report["undecided"] == 0
    assert no_losses(result.report)
    functions = [frame["function"] for frame in leaks(result.report)[0]["stack"]["frames"]]
    assert "main" in functions


@pytest.mark.parametrize(
    ("body", "tail_ms", "end", "status"),
    [
        ("at_end", 50, "return", CHOSEN),
        ("runs", 2, "kill", 128 + signal.SIGKILL),
        ("churn", 0, "term", 128 + signal.SIGTERM),
        ("waits", 2, "exit", CHOSEN),
    ],
)
def test_healthy_programs_end_with_their_own_status(body: str, tail_ms: int, end: str, status: int) -> None:
    result = finale(body, tail_ms, end)
    assert found(result.report) == []
    assert result.report["undecided"] == 0
    assert result.status == status


@pytest.mark.parametrize(("end", "status"), [("term", 128 + signal.SIGTERM), ("exit", CHOSEN)])
def test_those_that_main_would_have_joined_next_are_not_judged(end: str, status: int) -> None:
    result = finale("in_turn", 2, end)
    assert found(result.report) == []
    assert (result.report["undecided"], result.status) == (4, status)


def test_what_is_killed_in_the_window_is_judged_as_it_died() -> None:
    with Target("never_joined") as target, traced(target, "--fail-on-leak") as tracer:
        target.run()
        target.process.kill()
        result = tracer.wait()
    assert result.status == LEAK
    assert sum(count for _, count, _ in found(result.report)) == len(target.facts("mapped"))
    assert all("(proved)" in why for _, _, why in found(result.report))


def test_musl_keeps_no_stack_of_a_joined_thread(tmp_path: Path) -> None:
    program = compiled(tmp_path, "unjoined", MUSL)
    leaking = run_tracer("--json", "-q", "--fail-on-leak", "--", program, 5, 20)
    # The last one may run on when the program ends.
    assert sum(count for _, count, _ in found(leaking.report)) in (4, 5)
    assert leaking.status == LEAK
    healthy = run_tracer("--json", "-q", "--fail-on-leak", "--", program, 5, 2, "joins")
    assert (found(healthy.report), healthy.status) == ([], CHOSEN)


@pytest.mark.parametrize(("body", "number", "status"), [("leak5", 5, LEAK), ("joined", 0, CHOSEN)])
def test_a_static_program_is_judged_by_its_symbols(
    tmp_path: Path, body: str, number: int, status: int
) -> None:
    program = compiled(tmp_path, "finale", STATIC)
    result = run_tracer("--json", "-q", "--fail-on-leak", "--", program, body, 2, "return")
    assert (sum(count for _, count, _ in found(result.report)), result.report["undecided"]) == (number, 0)
    assert result.status == status


def test_a_stripped_static_program_is_not_judged(tmp_path: Path) -> None:
    program = compiled(tmp_path, "finale", STRIPPED)
    result = run_tracer("--json", "-q", "--fail-on-leak", "--", program, "leak5", 2, "return")
    assert result.report["undecided"] == 5
    assert (found(result.report), result.status) == ([], CHOSEN)
