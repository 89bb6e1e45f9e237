# SPDX-License-Identifier: Apache-2.0
"""What a traced COMMAND is left with: its own limits; and what is said of it when the trace is over."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import TRACER, run_tracer
from trace_harness import TRACE, run

JOBS = {"mmap-leaks": TRACER, "trace": TRACE}


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("job", JOBS)
def test_exit_status_is_passed_on(job: str) -> None:
    result = run(*JOBS[job], "-o", "/dev/null", "--", "sh", "-c", "exit 7")
    assert (result.returncode, result.stderr) == (7, "attached\nebpftrace: COMMAND exited with 7\n")


@pytest.mark.parametrize("job", JOBS)
def test_a_signal_is_passed_on_as_a_shell_does(job: str) -> None:
    result = run(*JOBS[job], "-q", "-o", "/dev/null", "--", "sh", "-c", "kill -TERM $$")
    assert result.returncode == 128 + signal.SIGTERM


def test_the_report_says_how_it_ended() -> None:
    result = run_tracer("--json", "--fail-on-leak", "--", "sh", "-c", "exit 7")
    assert result.status == 7
    assert result.report["command"] == {"argv": ["sh", "-c", "exit 7"], "exit_status": 7, "signal": None}
    assert result.report["undecided"] == 0


@pytest.mark.parametrize("job", JOBS)
def test_nothing_is_reported_on_success_or_with_quiet(job: str) -> None:
    assert run(*JOBS[job], "-o", "/dev/null", "--", "true").stderr == "attached\n"
    assert run(*JOBS[job], "-q", "-o", "/dev/null", "--", "false").stderr == ""


@pytest.mark.parametrize("job", JOBS)
def test_one_that_goes_on_is_named(job: str, tmp_path: Path) -> None:
    # Streams of its own: who reads ours waits for it no longer than for us.
    command = ["sh", "-c", "exec sleep 600 >/dev/null 2>&1 </dev/null"]
    result = run(*JOBS[job], "-d", "0.2", "-o", tmp_path / "report", "--", *command)
    reported = re.search(r"^ebpftrace: COMMAND still runs: PID (\d+)$", result.stderr, re.MULTILINE)
    assert reported, result.stderr
    os.kill(int(reported[1]), signal.SIGKILL)
    assert result.returncode == 0


def test_the_thread_of_a_command_that_runs_has_its_name(tmp_path: Path) -> None:
    page = tmp_path / "report"
    run_tracer("--json", "-q", "-d", "0.5", "-o", page, "--", "sleep", "4")
    report = json.loads(page.read_text())
    assert [(thread["name"], thread["alive"]) for thread in report["threads"]] == [("sleep", True)]


def test_it_keeps_the_limit_of_open_files_it_was_started_with() -> None:
    limits = (300, 400)
    result = run_tracer(
        *("-o", "/dev/null", "--", "sh", "-c", "ulimit -S -n; ulimit -H -n"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
    )
    assert result.stdout.split() == ["300", "400"]


@pytest.mark.parametrize("limit", [16, 40])
@pytest.mark.parametrize("job", JOBS)
def test_too_few_open_files_is_one_line(job: str, limit: int, sleeper: int) -> None:
    result = run("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *JOBS[job], "-d", "1", "-p", sleeper)
    assert result.returncode == 1
    assert re.fullmatch(r"ebpftrace: .*too many open files: raise the limit .*\(ulimit -n\)\n", result.stderr)


@pytest.mark.parametrize("job", JOBS)
def test_a_soft_limit_of_open_files_is_no_limit(job: str, sleeper: int) -> None:
    result = run("sh", "-c", 'ulimit -S -n 20; exec "$@"', "sh", *JOBS[job], "-d", "0.2", "-p", sleeper)
    assert (result.returncode, result.stderr) == (0, "attached\n")
