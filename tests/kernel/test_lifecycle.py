# SPDX-License-Identifier: Apache-2.0
"""How a trace begins and ends: signals, exit, exec, COMMAND, and every error in one line."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

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
    eventually,
    fact_areas,
    leaks,
    reported,
    reported_areas,
    run_tracer,
    traced,
    union,
)
from process_helpers import gone, kernel_thread, running

from ebpftrace.errors import CannotTrace
from ebpftrace.sessions import growth, maps, mmap_leaks, trace
from ebpftrace.vmas import Vmas

BPF_CALL = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_GET_FD_BY_ID = {"prog": 13, "map": 14}
"""Commands of bpf(2): BPF_PROG_GET_FD_BY_ID, BPF_MAP_GET_FD_BY_ID."""
NOBODY = 65534


def bpf_object_exists(kind: str, number: int) -> bool:
    """Whether the kernel still has the program or map; an attached program is never freed."""
    attributes = ctypes.create_string_buffer(struct.pack("=III", number, 0, 0).ljust(128, b"\0"))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(BPF_CALL, BPF_GET_FD_BY_ID[kind], attributes, len(attributes.raw) - 1)
    if descriptor >= 0:
        os.close(descriptor)
        return True
    assert ctypes.get_errno() == errno.ENOENT, os.strerror(ctypes.get_errno())
    return False


def assert_gone(programs: set[int], maps: set[int]) -> None:
    assert programs
    assert maps
    eventually(
        lambda: (
            not any(
                bpf_object_exists(kind, number)
                for kind, numbers in (("prog", programs), ("map", maps))
                for number in numbers
            )
        ),
        "the tracer's programs and maps are gone",
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """A zombie that nobody reaps does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_one_line(result: Result, status: int, *words: str) -> None:
    """One clear line on stderr that holds the words, nothing on stdout."""
    assert result.status == status, result
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


# --- how a trace ends -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_trace_with_a_report(number: int) -> None:
    with Target("orphans", "kept", 3) as target, traced(target, "--min-age", 0) as tracer:
        programs, maps = tracer.bpf_ids("prog"), tracer.bpf_ids("map")
        target.run()
        result = tracer.interrupt(number)
        assert target.process.poll() is None
    assert result.status == 0
    assert result.report["window"]["ended_by"] == "interrupt"
    assert len(reported(result.report, *ORPHANED)) == 3
    assert_gone(programs, maps)


MANY_AREAS = """
import mmap
kept = [mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 1 + i % 2 * 2) for i in range(21_000)]
print("ready", flush=True)
input()
"""


def test_a_report_that_takes_long_is_announced_and_can_be_ended() -> None:
    with running(sys.executable, "-c", MANY_AREAS) as (target, _):
        with traced(target) as tracer:
            tracer.process.send_signal(signal.SIGTERM)
            printed = tracer.wait_to_say("the trace is over")
            assert "VMAs takes some seconds" in printed
            assert tracer.wait().report["window"]["ended_by"] == "interrupt"
        with traced(target) as tracer:
            tracer.process.send_signal(signal.SIGTERM)
            tracer.wait_to_say("ends ebpftrace without it")
            tracer.process.send_signal(signal.SIGTERM)
            assert tracer.process.wait(PATIENCE) == -signal.SIGTERM
        with Tracer("-p", target.pid, "-d", 0.1) as tracer:
            tracer.wait_to_say("ends ebpftrace without it")
            tracer.process.send_signal(signal.SIGTERM)  # the first one, but the trace has ended by itself
            assert tracer.process.wait(PATIENCE) == -signal.SIGTERM


def test_signals_end_at_once_what_reads_a_single_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebpftrace.own_process.is_claimed", lambda: True)
    handlers = []

    def report(*_: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))

    with Target("orphans", "kept", 3) as target:
        maps.run(target.pid, None, None, report)
        settings = mmap_leaks.Settings(pids=[target.pid], duration=0, min_age=0)
        mmap_leaks.run(settings, Mock(report=report))
    assert handlers == [signal.SIG_DFL, signal.SIG_DFL]


def test_a_signal_ends_maps_in_the_middle_of_a_later_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 71,000 unjoined threads one look takes seconds."""
    monkeypatch.setattr("ebpftrace.own_process.is_claimed", lambda: True)
    read_smaps, finished = maps.read_smaps, []

    def read(pid: int) -> Vmas:
        if finished:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it goes on")
        return read_smaps(pid)

    monkeypatch.setattr(maps, "read_smaps", read)
    with Target("orphans", "kept", 3) as target:
        maps.run(target.pid, 0.0, None, finished.append)
    assert len(finished) == 1


@pytest.mark.parametrize(
    ("session", "settings", "observers"),
    [
        (growth, {"interval": 1.0, "duration": 1.0}, 1),
        (mmap_leaks, {}, 1),
        (trace, {"filters": Mock(stacks=False), "style": Mock()}, 3),
    ],
)
def test_signals_end_at_once_what_only_loads(
    monkeypatch: pytest.MonkeyPatch, session: ModuleType, settings: dict[str, Any], observers: int
) -> None:
    """There is nothing to report yet, and loading may take seconds."""
    monkeypatch.setattr("ebpftrace.own_process.is_claimed", lambda: True)
    handlers = []

    def load(*_: object, **__: object) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        raise CannotTrace("it is a test")

    monkeypatch.setattr(session, "CallTracer" if session is trace else "begin_loading", load)
    with Target("orphans", "kept", 3) as target, pytest.raises(CannotTrace, match="it is a test"):
        session.run(session.Settings(pids=[target.pid], **settings), *[Mock()] * observers)
    assert handlers == [signal.SIG_DFL]


def test_sigkill_leaves_nothing_attached_and_the_target_running() -> None:
    with Target("flood", 2000, 0) as target, traced(target) as tracer:
        programs, maps = tracer.bpf_ids("prog"), tracer.bpf_ids("map")
        helpers = children(tracer.pid)
        target.go()
        tracer.process.kill()
        tracer.process.wait()
        assert_gone(programs, maps)
        eventually(lambda: not any(map(is_running, helpers)), "the tracer's helpers are gone")
        target.wait_for("done")
        assert target.end() == 0


def test_duration_ends_the_trace() -> None:
    with Target("orphans", "kept", 3) as target:
        with Tracer("-p", target.pid, "-d", 5, "--min-age", 0) as tracer:
            target.run()
            done_at = datetime.now(timezone.utc)
            result = tracer.wait()
        report = result.report
    window = report["window"]
    assert result.status == 0
    assert window["ended_by"] == "duration"
    assert window["seconds"] >= 5
    over_at = datetime.fromisoformat(window["ended_at"]) - timedelta(seconds=window["seconds"] - 5)
    if done_at <= over_at:  # a machine may sleep through the whole window
        assert len(reported(report, *ORPHANED)) == 3


@pytest.mark.parametrize("mode", ["exit", "killed"])
def test_end_of_the_target_ends_the_trace(mode: str) -> None:
    with Target("ends", mode) as target, traced(target) as tracer:
        target.go()
        result = tracer.wait()
    assert result.status == 0
    report = result.report
    assert report["window"]["ended_by"] == "target-exit"
    assert report["target"]["pid"] == target.pid
    assert report["calls"]["mmap"] >= 2
    assert report["calls"]["thread_exit"] >= 1


@pytest.mark.parametrize("mode", ["exec", "thread"])
def test_exec_of_the_target_ends_its_address_space_and_not_the_trace(mode: str) -> None:
    """All that was mapped is gone at once: none of it may be reported as still there."""
    with Target("ends", mode) as target, traced(target, "--min-age", 0) as tracer:
        target.go()
        assert target.end() == 0
        result = tracer.wait()
    assert result.status == 0
    assert result.report["window"]["ended_by"] == "exec"
    assert result.report["target"]["comm"] == "ends"
    assert Path(result.report["executed"]).name == "cat"
    assert result.report["processes"] == {"followed": 1, "judged": 0, "lost": 0}
    assert not leaks(result.report)


def test_fail_on_leak() -> None:
    with Target("reproducer", 20) as target, traced(target, "--min-age", 0, "--fail-on-leak") as tracer:
        target.run()
        result = tracer.interrupt()
    assert leaks(result.report)
    assert result.status == 3


def test_output_file_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    with Target("reproducer", 5) as target, traced(target, "--min-age", 0, "-o", output) as tracer:
        target.run()
        assert not output.exists()
        result = tracer.interrupt()
    assert result.status == 0
    assert result.stdout == ""
    report = Result(0, output.read_text(), "").report
    assert sum(finding["count"] for finding in leaks(report)) == 5
    assert list(tmp_path.iterdir()) == [output]


def test_interval_reports_again_and_again() -> None:
    """One JSON document per line, each whole, the last one with everything."""
    with Target("reproducer", 5) as target, traced(target, "-i", 0.5, "--min-age", 0) as tracer:
        tracer.wait_for_report()
        target.run()
        tracer.wait_for_report()
        result = tracer.interrupt()
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(reports) >= 3
    assert {report["window"]["ended_by"] for report in reports[:-1]} == {"interval"}
    assert reports[-1]["window"]["ended_by"] == "interrupt"
    assert not reported(reports[0], "abandoned-stack")
    assert len(reported(reports[-1], "abandoned-stack")) == 5


def test_reports_that_are_not_made_in_time_are_counted() -> None:
    with Target("reproducer", 5) as target, traced(target, "-i", 0.001) as tracer:
        tracer.wait_for_report()
        tracer.wait_for_report()
        result = tracer.interrupt()
    last = json.loads(result.stdout.splitlines()[-1])
    assert any("of --interval skipped" in note for note in last["notes"])


def test_one_reading_reports_one_reading() -> None:
    """With -d 0 there is no window that anything could change over, though it is read twice."""
    grow = (
        "import mmap, sys, time\n"
        "held = [mmap.mmap(-1, 4096)]\n"
        "print('ready', flush=True)\n"
        "while len(held) < 30_000: held.append(mmap.mmap(-1, 4096)); time.sleep(0.002)\n"
        "sys.stdin.read()\n"
    )
    with Program(Path(sys.executable), "-c", grow) as grower:
        report = run_tracer("--json", "-d", 0, "-p", grower.pid).report
    memory, target = report["memory"], report["target"]
    assert memory["virt_start"] == memory["virt_end"] > 0
    assert memory["rss_start"] == memory["rss_end"] > 0
    assert target["threads_start"] == target["threads_end"] == 1


# --- COMMAND ----------------------------------------------------------------------------------


def test_command_is_traced_from_its_first_instruction(tmp_path: Path) -> None:
    """The report is in a file, since the command has the tracer's stdout."""
    output = tmp_path / "report.json"
    result = run_tracer("--json", "-o", output, "-d", 300, "--", build("ends"), "exit", "now")
    report = Result(0, output.read_text(), "").report
    assert result.status == 0, result.stderr
    assert report["window"]["ended_by"] == "target-exit"
    assert report["target"]["comm"] == "ends"
    # The dynamic loader's calls are there too, not only the two of the program.
    assert report["calls"]["mmap"] > 5
    assert report["calls"]["brk"] >= 1


def test_report_of_a_command_that_ended_reports_what_was_so_at_its_end() -> None:
    outcome = run_tracer("--min-age", 600, "--", "/bin/true")
    assert outcome.status == 0, outcome.stderr
    for past in ("and mapped when it ended: ", "and mapped when it ended, by owner", "target has exited"):
        assert past in outcome.stdout
    for present in ("still", "not yet", "gone"):
        assert present not in outcome.stdout


def test_command_that_outlives_the_trace(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    options = ["--json", "-o", output, "--until-interrupt", "--min-age", 0]
    process = subprocess.Popen(
        [*TRACER, *map(str, options), "--", str(build("ends")), "stays", "now"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    printed = Lines(process.stdout)
    try:
        assert printed.until(lambda line: line == "done"), printed.seen
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.stdin.close()  # which ends the command
        process.kill()
        process.wait()
    printed.until(None)
    report = Result(0, output.read_text(), "").report
    facts = [json.loads(line) for line in printed.seen if line.startswith("{")]
    found = reported_areas(report, *ORPHANED)
    assert union(found) == union(fact_areas(facts))
    assert report["window"]["ended_by"] == "interrupt"


@pytest.mark.parametrize("joins", [(), ("joins",)])
def test_command_that_ends_is_judged_by_its_last_moment(tmp_path: Path, joins: tuple[str, ...]) -> None:
    """Threads pile up from its beginning to its end; joined at the very end they are no leak."""
    output = tmp_path / "report.json"
    options = ["--json", "--fail-on-leak", "-o", output]
    result = run_tracer(*options, "--", build("unjoined"), 20, 20, *joins)
    report = Result(0, output.read_text(), "").report
    assert report["window"]["ended_by"] == "target-exit"
    if joins:
        assert (result.status, leaks(report)) == (7, [])
        return
    assert result.status == 3, result.stderr
    assert {leak["verdict"] for leak in leaks(report)} == {"never-joined-thread"}
    assert {leak["start_routine"]["function"] for leak in leaks(report)} == {"end_at_once"}
    # The last one may be about to exit.
    assert 19 <= sum(leak["count"] for leak in leaks(report)) <= 20


# --- errors -----------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_no_such_process() -> None:
    with gone() as pid:
        assert_one_line(run_tracer("-p", pid), 1, str(pid))


def test_kernel_thread() -> None:
    assert_one_line(run_tracer("-p", kernel_thread()), 1, "kernel thread")


def test_zombie() -> None:
    child = subprocess.Popen(["true"])
    stat = Path(f"/proc/{child.pid}/stat")
    eventually(lambda: " Z " in stat.read_text(), "the child is a zombie")
    try:
        assert_one_line(run_tracer("-p", child.pid), 1, str(child.pid))
    finally:
        child.wait()


def test_command_not_found(tmp_path: Path) -> None:
    assert_one_line(run_tracer("-d", 1, "--", tmp_path / "no-such-command"), 1, "no-such-command")


def test_command_not_executable(tmp_path: Path) -> None:
    command = tmp_path / "plain-file"
    command.write_text("text")
    assert_one_line(run_tracer("-d", 1, "--", command), 1, "plain-file")


def test_output_file_not_writable(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    output = tmp_path / "no-such-directory" / "report.json"
    # It is said before the trace: after one of an hour, nobody would wait for it.
    result = run_tracer("-p", sleeper.pid, "-d", 3600, "-o", output)
    assert_one_line(result, 1, "no-such-directory")


def test_not_root(sleeper: subprocess.Popen[bytes]) -> None:
    """The program is copied to where everybody can read it."""
    nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, **nobody)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("this Python can be run by root only")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        # What is compiled comes and goes while other tests import the package.
        ours = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "ebpftrace", directory / "ebpftrace", ignore=ours)
        shutil.copytree(ROOT / "bpf", directory / "bpf")
        assert_one_line(run_tracer("-p", sleeper.pid, "-d", 1, cwd=directory, **nobody), 1, "root")


def test_bcc_missing(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('no bcc here')\n")
    result = run_tracer("-p", sleeper.pid, "-d", 1, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert_one_line(result, 1, "bcc")


def test_tracefs_not_mounted(sleeper: subprocess.Popen[bytes]) -> None:
    """In a mount namespace without tracefs: it mounts it for itself, or says how."""
    script = 'umount -l /sys/kernel/tracing 2>/dev/null; umount -l /sys/kernel/debug 2>/dev/null; exec "$@"'
    ended = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            *TRACER,
            "-p",
            str(sleeper.pid),
            "-d",
            "1",
            "--json",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    result = Result(ended.returncode, ended.stdout, ended.stderr)
    if result.status == 0:
        assert result.report["target"]["pid"] == sleeper.pid
    else:
        assert_one_line(result, 1, "tracefs")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-p", "none"],
        ["-p", "-1"],
        ["-p", "1", "-d", "-1"],
        ["-p", "1", "--no-such-option"],
        ["-p", "1", "--min-age", "soon"],
        ["-p", "1", "--", "true"],
    ],
    ids=" ".join,
)
def test_bad_usage(arguments: list[str]) -> None:
    result = run_tracer(*arguments)
    assert result.status == 2
    assert result.stdout == ""
    assert result.stderr
