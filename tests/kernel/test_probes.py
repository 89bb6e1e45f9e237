# SPDX-License-Identifier: Apache-2.0
"""``--probes fentry``: system calls are traced at their functions, and nothing runs at their tracepoints.

Kernels that refuse it say why, in one line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import (
    PATIENCE,
    Target,
    build,
    leaks,
    ledger_areas,
    mapped,
    minus,
    reported_areas,
    run_tracer,
    size,
    traced,
)

from ebpftrace.capture.layout import Follow, Probes
from ebpftrace.capture.loader import Loading
from ebpftrace.capture.probes import choose, preemption_of_this_kernel
from ebpftrace.capture.sizing import Needs
from ebpftrace.errors import CannotTrace

LEAK = 3
MILLISECONDS = 500


def refusal() -> str:
    """Why this kernel refuses programs at functions; empty if it does not."""
    try:
        choose(Probes.FENTRY)
    except CannotTrace as error:
        return error.what
    return ""


def require(probes: str) -> None:
    if probes == "fentry" and refusal():
        pytest.skip("this kernel refuses programs at functions")


@pytest.fixture
def fentry() -> None:
    require("fentry")


def needs(probes: Probes) -> Needs:
    return Needs(
        [100], 1, 65_530, 32_768, stack_bytes=4096, copies_per_second=5, follow=Follow.FORKS, probes=probes
    )


def attached(probes: Probes) -> set[str]:
    with Loading(needs(probes)) as loading:
        return set(loading.wait().programs)


def at_tracepoints(programs: set[str]) -> set[str]:
    return {name for name in programs if name.startswith("tracepoint__syscalls__")}


def at_functions(programs: set[str]) -> set[str]:
    return {name for name in programs if name.startswith(("fentry__", "fexit__"))}


def test_a_kernel_that_refuses_it_is_given_one_line() -> None:
    why = refusal()
    result = run_tracer("--probes", "fentry", "--json", "--", "true")
    if not why:
        assert result.status == 0
        return
    assert result.status == 1
    assert result.stderr == f"ebpftrace: {why}: leave out --probes fentry\n"


def test_tracepoints_are_used_on_request() -> None:
    programs = attached(Probes.TRACEPOINTS)
    assert at_tracepoints(programs)
    assert not at_functions(programs)


def test_fentry_is_chosen_where_it_can_not_miss_a_call() -> None:
    programs = attached(Probes.AUTO)
    chosen = not refusal() and preemption_of_this_kernel() in ("none", "voluntary")
    assert bool(at_functions(programs)) is chosen
    assert bool(at_tracepoints(programs)) is not chosen


@pytest.mark.usefixtures("fentry")
def test_no_program_is_at_a_tracepoint_of_a_system_call() -> None:
    programs = attached(Probes.FENTRY)
    assert not at_tracepoints(programs)
    assert {"fexit__mmap:mmap", "fentry__munmap:munmap", "fexit__mremap:shmat"} <= programs


@pytest.mark.parametrize("probes", ["tracepoints", "fentry"])
def test_the_ledger_is_what_the_kernel_has(probes: str, tmp_path: Path) -> None:
    require(probes)
    dump = tmp_path / "ledger.json"
    options = ("--probes", probes, "--min-age", 0, "--dump-ledger", dump)
    with Target("exact", 1, MILLISECONDS, 0) as target, traced(target, *options) as tracer:
        target.run(MILLISECONDS / 1000 + PATIENCE)
        report = tracer.interrupt().report
        truth = mapped(target.pid)
    assert not minus(reported_areas(report), truth)
    assert report["calls"]["mmap"] > 0
    if not report["losses"]["events"]:
        ledger = json.loads(dump.read_text())
        known = ledger_areas(ledger)
        assert ledger["phantom_bytes"] == size(minus(known, truth))
        assert ledger["unexplained_bytes"] == report["unexplained_bytes"] == size(minus(truth, known))


@pytest.mark.parametrize("probes", ["tracepoints", "fentry"])
@pytest.mark.parametrize("end", ["return", "kill"])
def test_threads_are_judged_at_the_end_of_their_process(end: str, probes: str) -> None:
    require(probes)
    options = ("--probes", probes, "--json", "-q", "--fail-on-leak")
    result = run_tracer(*options, "--", build("finale"), "leak5", 0, end)
    assert result.status == LEAK
    found = [(leak["verdict"], leak["count"], leak["stack"]["complete"]) for leak in leaks(result.report)]
    assert found == [("never-joined-thread", 5, True)], json.dumps(result.report)


@pytest.mark.parametrize("probes", ["tracepoints", "fentry"])
def test_what_leaked_before_an_exec_is_found(probes: str) -> None:
    require(probes)
    with (
        Target("exec_after", 4) as target,
        traced(target, "--probes", probes, "--fail-on-leak") as tracer,
    ):
        target.go()
        assert target.end() == 0
        result = tracer.wait()
    assert result.status == LEAK
    assert sum(leak["count"] for leak in leaks(result.report)) == 4
