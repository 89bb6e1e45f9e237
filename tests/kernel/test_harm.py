# SPDX-License-Identifier: Apache-2.0
"""However the tracer ends, its probes are gone and the target runs on; and it stands beside others."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import (
    ORPHANED,
    PATIENCE,
    ROOT,
    TRACER,
    Lines,
    Program,
    Result,
    Target,
    Tracer,
    build,
    fact_areas,
    reported,
    reported_areas,
    traced,
    union,
)
from test_lifecycle import NOBODY, assert_gone

from ebpftrace.errors import STATUS_INTERRUPTED

SABOTAGED = """
import ctypes, os, signal
from ebpftrace.sessions.watch import Watch
def crash(*_):
    {crash}
Watch.{method} = crash
from ebpftrace.cli import main
main(prog_name="ebpftrace")
"""


class Started(Tracer):
    """A tracer started by another command line, or with other limits."""

    def __init__(self, command: Sequence[object], **popen: Any) -> None:
        settings: dict[str, Any] = {
            "cwd": ROOT,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **popen,
        }
        self.process = subprocess.Popen([*map(str, command)], **settings)
        assert self.process.stderr is not None
        self._stderr = Lines(self.process.stderr)
        if self.process.stdout is not None:
            self._stdout = Lines(self.process.stdout)
        self.pid = self.process.pid


def one_line(printed: Sequence[str]) -> str:
    """The only line after "attached"."""
    lines = [line for line in printed[printed.index("attached") + 1 :] if line]
    assert len(lines) == 1, printed
    return lines[0]


# --- how it can end badly ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crash", "status", "printed"),
    [
        ("raise RuntimeError('a bug')", 1, "please report it"),
        ("raise MemoryError", 1, "out of memory"),
        ("raise OSError(12, 'Cannot allocate memory')", 1, "out of memory"),
        ("ctypes.string_at(0)", -11, ""),
        ("os.abort()", -6, ""),
        ("os._exit(9)", 9, ""),
    ],
    ids=lambda value: str(value).partition("(")[0],
)
def test_crash_while_events_are_handled(crash: str, status: int, printed: str) -> None:
    program = SABOTAGED.format(crash=crash, method="keep_copy")
    command = [sys.executable, "-c", program, "mmap-leaks", "--json", "--until-interrupt"]
    with Target("orphans", "hole") as target, Started([*command, "-p", target.pid]) as tracer:
        programs, maps = tracer.bpf_ids("prog"), tracer.bpf_ids("map")
        target.run()
        result = tracer.wait()
        assert_gone(programs, maps)
        assert target.end() == 0
    assert result.status == status
    assert result.stdout == ""
    if printed:
        assert printed in one_line(tracer.printed)


def test_closed_pipe_at_the_report() -> None:
    reading, writing = os.pipe()
    with Target("orphans", "kept") as target:
        with Started([*TRACER, "--until-interrupt", "-p", target.pid], stdout=writing) as tracer:
            os.close(writing)
            os.close(reading)
            programs, maps = tracer.bpf_ids("prog"), tracer.bpf_ids("map")
            target.run()
            tracer.process.send_signal(2)
            assert tracer.process.wait(PATIENCE) == 141
            tracer._stderr.until(None)
            assert tracer.printed[-1] == "attached"
            assert_gone(programs, maps)
        assert target.end() == 0


def test_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    """A real file system without space, in a mount namespace of its own."""
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1" && echo before >"$1/report" && '
        '{ cat /dev/zero >"$1/full" 2>/dev/null; place="$1"; shift; "$@" -o "$place/report" -q; }; '
        'echo "$? $(cat "$place/report") $(ls -A "$place" | tr "\\n" " ")"'
    )
    with Target("orphans", "kept") as target:
        ended = subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", tmp_path),
                *(*TRACER, "-d", "1", "-p", str(target.pid)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        target.run()
        assert target.end() == 0
    assert ended.stdout == "1 before full report \n"
    assert len(ended.stderr.splitlines()) == 1
    assert "no space left on device" in ended.stderr


@pytest.mark.parametrize("mebibytes", [60, 120, 200, 400])
def test_too_little_memory_to_begin(mebibytes: int) -> None:
    """It ends in bounded time, not by a traceback, and never with a report that is cut short."""
    limit = mebibytes << 20
    with Target("orphans", "kept") as target:
        ended = subprocess.run(
            [*TRACER, "--json", "-q", "-d", "1", "-p", str(target.pid)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        target.run()
        assert target.end() == 0
    if ended.returncode == 0:
        assert Result(0, ended.stdout, "").report
    else:
        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1


def test_memory_that_runs_out_while_tracing() -> None:
    """What is mapped stays; nothing more can be had."""
    with Target("flood", 2000, 0) as target, traced(target, "--min-age", 0) as tracer:
        programs, maps = tracer.bpf_ids("prog"), tracer.bpf_ids("map")
        resource.prlimit(tracer.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
        target.go()
        target.wait_for("done")
        result = tracer.interrupt()
        assert_gone(programs, maps)
        assert target.end() == 0
    if result.status == 0:
        assert result.report
    elif result.status == STATUS_INTERRUPTED:
        # The signal came when it was ending already.
        assert not result.stdout
    else:
        assert result.status == 1
        assert one_line(tracer.printed)


# --- beside others ----------------------------------------------------------------------------


def test_two_tracers_on_one_target() -> None:
    with Target("orphans", "kept", 5) as target:
        with traced(target, "--min-age", 0) as one, traced(target, "--min-age", 0) as other:
            target.run()
            reports = [one.interrupt().report, other.interrupt().report]
        made = union(fact_areas(target.facts("mapped")))
        assert target.end() == 0
    for report in reports:
        assert union(reported_areas(report, *ORPHANED)) == made


def test_one_tracer_on_five_targets() -> None:
    with ExitStack() as held:
        targets = [held.enter_context(Target("orphans", "kept", count)) for count in range(1, 6)]
        options = [option for target in targets for option in ("-p", target.pid)]
        tracer = held.enter_context(Tracer("--until-interrupt", "--min-age", 0, *options))
        for target in targets:
            target.run()
        result = tracer.interrupt()
        reports = [json.loads(line) for line in result.stdout.splitlines()]
        assert [report["target"]["pid"] for report in reports] == [target.pid for target in targets]
        for target, report in zip(targets, reports):
            made = union(fact_areas(target.facts("mapped")))
            assert union(reported_areas(report, *ORPHANED)) == made
            assert report["calls"]["thread_exit"] == len(target.facts("mapped"))
            assert target.end() == 0


def test_one_of_two_targets_ends_early() -> None:
    with Target("orphans", "kept", 2) as lives, Target("ends", "exit") as ends:
        with Tracer("--until-interrupt", "--min-age", 0, "-p", ends.pid, "-p", lives.pid) as tracer:
            ends.go()
            ends.process.wait(PATIENCE)
            lives.run()
            reports = [json.loads(line) for line in tracer.interrupt().stdout.splitlines()]
        made = union(fact_areas(lives.facts("mapped")))
    assert [report["window"]["ended_by"] for report in reports] == ["target-exit", "interrupt"]
    assert union(reported_areas(reports[1], *ORPHANED)) == made


def test_a_tracer_traces_another() -> None:
    with Target("orphans", "kept", 3) as target, traced(target, "--min-age", 0) as traced_one:
        with Tracer("-p", traced_one.pid, "--until-interrupt") as tracer:
            target.run()
            mine = traced_one.interrupt()
            result = tracer.wait()
        made = union(fact_areas(target.facts("mapped")))
    assert union(reported_areas(mine.report, *ORPHANED)) == made
    assert result.report["target"]["pid"] == traced_one.pid
    assert result.report["window"]["ended_by"] == "target-exit"


def test_a_tracer_traces_itself() -> None:
    """It is a process like another one; what it maps is its own affair, so it only has to end well."""
    script = 'exec "$@" -p $$'
    ended = subprocess.run(
        ["sh", "-c", script, "sh", *TRACER, "--json", "-q", "-d", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    report = Result(0, ended.stdout, "").report
    assert report["window"]["ended_by"] == "duration"
    assert not [one for one in reported(report) if one["owner_tid"] == report["target"]["pid"]]


# --- least privileges -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "deleted"),
    [
        ("+bpf,+perfmon,+sys_ptrace,+dac_read_search", False),
        ("+bpf,+perfmon,+sys_ptrace,+dac_read_search,+checkpoint_restore", True),
    ],
    ids=["four", "five, and the program is deleted"],
)
def test_capabilities_that_suffice(capabilities: str, deleted: bool, tmp_path: Path) -> None:
    """The tracer is nobody's, the target root's: findings, and their stacks, are all there."""
    program = tmp_path / "program"
    shutil.copy(build("orphans"), program)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*user, sys.executable, "-c", ""], cwd=ROOT, check=False).returncode:
        pytest.skip("this Python can be run by root only")
    granted = [*user, f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    options = ["--json", "--until-interrupt", "--min-age", "0"]
    with Program(program, "kept", 3) as target:
        if deleted:
            program.unlink()
        with Started([*granted, *TRACER, *options, "-p", target.pid]) as tracer:
            target.run()
            result = tracer.interrupt()
        made = union(fact_areas(target.facts("mapped")))
    report = result.report
    assert result.status == 0
    assert union(reported_areas(report, *ORPHANED)) == made
    (finding,) = [one for one in report["findings"] if one["verdict"] in ORPHANED]
    assert finding["stack"]["complete"]
    assert "map_and_exit" in [frame["function"] for frame in finding["stack"]["frames"]]
    assert set(report["losses"].values()) == {0}
