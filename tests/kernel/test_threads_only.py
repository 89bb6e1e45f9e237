# SPDX-License-Identifier: Apache-2.0
"""``--threads-only``: leaks of stacks are found, and no program runs at any system call."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import (
    Json,
    Target,
    build,
    leaks,
    mapped,
    minus,
    no_losses,
    reported_areas,
    run_tracer,
    traced,
)
from programs import MUSL, compiled

from ebpftrace.capture.loader import Loading
from ebpftrace.capture.sizing import Needs

LEAK, FAILED_BY_ITSELF = 3, 7


def functions(finding: Json) -> list[str]:
    return [frame["function"] for frame in finding["stack"]["frames"]]


@pytest.mark.parametrize("threads_only", [False, True])
def test_programs_at_system_calls_are_attached_unless_only_threads_are_traced(threads_only: bool) -> None:
    needs = Needs([100], 1, 65_530, 32_768, stack_bytes=4096, copies_per_second=5, threads_only=threads_only)
    with Loading(needs) as loading:
        attached = set(loading.wait().programs)
    at_calls = {name for name in attached if name.startswith("tracepoint__syscalls__")}
    assert bool(at_calls) is not threads_only
    assert any("task_newtask" in name for name in attached)
    assert "tracepoint__sched__sched_process_exit" in attached


def test_threads_that_can_not_be_joined_any_more() -> None:
    with Target("never_joined", 8) as target, traced(target, "--threads-only") as tracer:
        target.run()
        report = tracer.interrupt().report
        assert not minus(reported_areas(report), mapped(target.pid))
    (leak,) = leaks(report)
    assert (leak["verdict"], leak["certainty"]) == ("never-joined-thread", "proved")
    assert (leak["count"], leak["before_attach"]) == (8, False)
    assert {owner["owner_name"] for owner in leak["mappings"]} == {"minute-job"}
    assert leak["stack"]["complete"]
    assert "main" in functions(leak)
    assert report["threads_only"]
    assert report["calls"]["mmap"] is None
    assert report["calls"]["clone"] >= leak["count"]
    assert report["unexplained_bytes"] == 0
    assert no_losses(report)


@pytest.mark.parametrize("mode", ["joined", "detached", "later-join"])
def test_healthy_threads_are_no_leak(mode: str) -> None:
    with Target("healthy", mode) as target, traced(target, "--threads-only") as tracer:
        target.run()
        report = tracer.interrupt().report
    assert leaks(report) == []


def test_the_end_is_judged() -> None:
    result = run_tracer(
        "--json", "-q", "--threads-only", "--fail-on-leak", "--", build("finale"), "leak5", 2000, "return"
    )
    assert result.status == LEAK
    assert sum(leak["count"] for leak in leaks(result.report)) == 5


def test_without_lists_of_glibc_the_threads_are_counted_as_undecided(tmp_path: Path) -> None:
    program = compiled(tmp_path, "finale", MUSL)
    arguments = ("--threads-only", "--fail-on-leak", "--", program, "leak5", 50, "return")
    result = run_tracer("--json", "-q", *arguments)
    assert result.status == FAILED_BY_ITSELF
    assert result.report["undecided"] >= 5
    assert run_tracer("-q", *arguments).stdout.startswith("CANNOT TELL: ")
