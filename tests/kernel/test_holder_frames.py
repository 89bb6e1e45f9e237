# SPDX-License-Identifier: Apache-2.0
"""A handle on the stack of a thread that waits: in whose frame it lies, with and without a trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, Json, Target, Tracer, eventually, run_tracer

COUNT = 20


def holders(report: Json) -> list[Json]:
    """Of all findings, those that are on stacks."""
    reaches = [finding["reach"] for finding in report["findings"] if finding["reach"] is not None]
    return [holder for reach in reaches for holder in reach["holders"] if holder["where"] == "stack"]


def functions(report: Json) -> set[str]:
    return {holder["frame"]["function"] for holder in holders(report) if holder["frame"] is not None}


def all_but_itself_and(others: int, pid: int) -> None:
    tasks = Path(f"/proc/{pid}/task")
    eventually(lambda: len(list(tasks.iterdir())) == 1 + others, "the threads have exited")


@pytest.mark.parametrize("way", ["main", "thread", "handler"])
def test_the_function_that_keeps_the_handles_is_named(way: str) -> None:
    with Target("frame_holders", COUNT, way) as program:
        program.run()
        all_but_itself_and(way == "thread", program.pid)
        alone = run_tracer("-p", program.pid, "-d", 0, "--json").report
        command = [sys.executable, "-m", "ebpftrace", "maps", "-p", str(program.pid), "--json"]
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        text = run_tracer("-p", program.pid, "-d", 0).stdout
    for report in (alone, json.loads(result.stdout)):
        assert functions(report) == {"keeps_them"}
        frame = next(holder["frame"] for holder in holders(report) if holder["frame"] is not None)
        assert frame["module"].endswith("/frame_holders")
        assert frame["file"].endswith("frame_holders.c")
    assert "(frame of keeps_them)" in " ".join(text.split())


def test_a_trace_names_it_too() -> None:
    with Target("frame_holders", COUNT, "main") as program:
        with Tracer("-p", program.pid, "--until-interrupt") as tracer:
            program.run()
            all_but_itself_and(0, program.pid)
            report = tracer.interrupt().report
        assert functions(report) == {"keeps_them"}


def test_of_a_thread_that_runs_nothing_wrong_is_said() -> None:
    """Its frame is named only if it got no CPU all the while, on a busy machine: then it is the right one."""
    with Target("frame_holders", COUNT, "runs") as program:
        program.run()
        all_but_itself_and(0, program.pid)
        report = run_tracer("-p", program.pid, "-d", 0, "--json").report
    assert holders(report)
    assert functions(report) <= {"keeps_them"}
