# SPDX-License-Identifier: Apache-2.0
"""Targets in containers' namespaces, and a tracer that is in one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import (
    ORPHANED,
    PATIENCE,
    ROOT,
    TRACER,
    Program,
    Target,
    build,
    fact_areas,
    leaks,
    no_losses,
    reported,
    reported_areas,
    traced,
    union,
)

PID = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Contained(Program):
    """A target behind a command that puts it into namespaces; its ``pid`` is what we call it."""

    def __enter__(self) -> Contained:
        super().__enter__()
        while below := children(self.pid):
            (self.pid,) = below
        return self


def tree_with(directory: Path, binary: Path) -> Path:
    """A root file system with the program and copies of its libraries of its own."""
    root = directory / "root"
    libraries = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    for word in libraries.split():
        if word.startswith("/"):
            place = root / word.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)
    shutil.copy(binary, root / "program")
    return root


def functions(finding: dict[str, Any]) -> list[str]:
    return [frame["function"] for frame in finding["stack"]["frames"]]


@pytest.mark.parametrize(
    "kind",
    [
        PID,
        ("unshare", "--mount", "--propagation", "private"),
        ("unshare", "--user", "--map-root-user"),
        ("unshare", "--net", "--ipc", "--uts", "--cgroup"),
        ("unshare", "--user", "--map-root-user", "--mount", "--net", *PID[1:]),
        ("unshare", "--time", "--monotonic", "864000", "--boottime", "864000", "--fork", "--kill-child"),
    ],
    ids=lambda kind: "".join(kind[1:3]),
)
def test_target_in_a_namespace(kind: tuple[str, ...]) -> None:
    with Contained(*kind, build("orphans"), "kept", 3) as target:
        with traced(target, "--min-age", 0) as tracer:
            target.run()
            result = tracer.interrupt()
        made = union(fact_areas(target.facts("mapped")))
        target.end()
    report = result.report
    assert report["target"]["pid"] == target.pid
    assert union(reported_areas(report, *ORPHANED)) == made
    (finding,) = [one for one in report["findings"] if one["verdict"] in ORPHANED]
    assert finding["stack"]["complete"]
    assert "map_and_exit" in functions(finding)
    assert no_losses(report)


@pytest.mark.parametrize("traces", [True, False], ids=["traced", "by the thread lists alone"])
def test_never_joined_in_a_container(traces: bool, tmp_path: Path) -> None:
    """Its own root, its own libc, its own numbers for threads, in glibc's thread lists too."""
    root = tree_with(tmp_path, build("never_joined"))
    command = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", root, "/program", 4)
    with Contained(*command) as target:
        if traces:
            with traced(target, "--min-age", 0) as tracer:
                target.run()
                report = tracer.interrupt().report
        else:
            target.run()
            ended = subprocess.run(
                [*TRACER, "--json", "-q", "-d", "0", "-p", str(target.pid)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            report = json.loads(ended.stdout)
        facts = target.facts("mapped")
        target.end()
    (finding,) = leaks(report)
    assert report["target"]["inner_pid"] == 1
    assert finding["verdict"] == "never-joined-thread"
    assert finding["count"] == 4
    assert finding["start_routine"]["function"] == "minute_job"
    assert union(reported_areas(report, "never-joined-thread")) == union(fact_areas(facts))
    if traces:
        names = functions(finding)
        assert names.index("main") > 0
        modules = {frame["module"] for frame in finding["stack"]["frames"]}
        assert any(module.endswith("/libc.so.6") for module in modules)
        # The program knows the numbers of its namespace; ours are those that we see in /proc.
        assert not {fact["owner"] for fact in facts} & {one["owner_tid"] for one in reported(report)}
        left = reported(report, "never-joined-thread")
        assert {one["mapper_tid"] for one in left} == {target.pid}
        # Its logs have these.
        inner = {fact["start"]: fact["owner"] for fact in facts}
        assert {int(one["start"], 16): one["owner_inner_tid"] for one in left} == inner
        assert {one["owner_creator_inner_tid"] for one in left} == {report["target"]["inner_pid"]}


def test_clones_in_a_container(tmp_path: Path) -> None:
    root = tree_with(tmp_path, build("reproducer"))
    with Contained("unshare", "--pid", "--fork", "--kill-child", "chroot", root, "/program", 3) as target:
        with traced(target, "--min-age", 0) as tracer:
            target.run()
            report = tracer.interrupt().report
        target.end()
    assert len(reported(report, "abandoned-stack")) == 3
    assert report["losses"]["mappings"] == 0


# --- the tracer in a PID namespace --------------------------------------------------------------


def inside(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A shell in a PID namespace with a /proc of its own."""
    return subprocess.run(
        [*PID, "sh", "-c", script, "sh", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


AS_ON_THE_HOST = (
    "test_exactness.py::test_ledger_is_what_the_kernel_has[1]",
    "test_growth_command.py::test_every_byte_has_its_cause",
    "test_lifecycle.py::test_command_is_traced_from_its_first_instruction",
    "test_lifecycle.py::test_exec_of_the_target_ends_its_address_space_and_not_the_trace[thread]",
    "test_mmap_leaks_orphans.py::test_what_is_left_of_an_orphan[kept]",
    "test_namespaces.py::test_clones_in_a_container",
    "test_trace.py::test_same_lines_as_strace[options0]",
    "test_trace.py::test_same_lines_as_strace_when_attached_later",
)
"""Tests that compare thread ids; all that creates, ends or executes tasks."""


@pytest.mark.parametrize("test", AS_ON_THE_HOST)
def test_tracing_from_a_container(test: str, tmp_path: Path) -> None:
    """In a PID namespace of its own, also of targets in one below, it works as on the host."""
    pytest_options = ("-q", "-p", "no:cacheprovider", "--basetemp", tmp_path / "inside")
    ended = inside(
        '"$@"; exit $?', sys.executable, "-m", "pytest", *pytest_options, ROOT / "tests/kernel" / test
    )
    assert ended.returncode == 0, ended.stdout[-5000:]


def test_the_host_goes_on_unseen() -> None:
    """Others' calls, by the same numbers in other namespaces, are not taken for the target's."""
    code = "from harness import trace; import json; print(json.dumps(trace('orphans', 'kept', 20)[1]))"
    with Target("flood", 60_000, 0) as neighbour:
        neighbour.go()
        with Contained(*PID, build("flood"), 60_000, 0) as contained:
            contained.go()
            ended = inside('PYTHONPATH=$1 "$2" -c "$3"', ROOT / "tests/support", sys.executable, code)
    calls = json.loads(ended.stdout)["calls"]
    assert calls["clone"] == calls["thread_exit"] == 20
    assert calls["mmap"] < 1000


def refusal(*place: str, pid: int) -> str:
    """The one line with which the tracer, started in that place, refuses to trace."""
    ended = subprocess.run(
        [*place, *TRACER, "-d", "1", "-p", str(pid)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    return line


def test_proc_of_another_namespace_is_refused_in_one_line() -> None:
    """Which process -p means could not be known."""
    line = refusal("unshare", "--pid", "--fork", pid=1)
    assert "another PID namespace" in line
    assert "mount -t proc" in line


def test_tracing_from_a_time_namespace_is_refused_in_one_line() -> None:
    """The kernel's events carry its own times: every age in the report would be wrong."""
    with Target("orphans", "kept") as target:
        line = refusal("unshare", "--time", "--monotonic", "864000", "--fork", pid=target.pid)
    assert "time namespace" in line


def test_the_lists_are_read_in_a_container(tmp_path: Path) -> None:
    """Without a trace no numbers of the kernel's are needed: -p is what the container calls the process."""
    script = (
        'directory=$1; mkfifo "$directory/in" "$directory/out"; '
        '"$2" 3 <"$directory/in" >"$directory/out" & pid=$!; shift 2; '
        'exec 8>"$directory/in" 9<"$directory/out"; read -r said <&9; echo go >&8; '
        'while read -r said <&9 && [ "$said" != "done" ]; do :; done; "$@" -p $pid; echo " $pid"'
    )
    options = (*TRACER, "--json", "-q", "-d", 0, "--min-age", 0)
    ended = inside(script, tmp_path, build("never_joined"), *options)
    text, _, pid = ended.stdout.rpartition(" ")
    report = json.loads(text)
    assert report["target"]["pid"] == int(pid)
    (finding,) = leaks(report)
    assert (finding["verdict"], finding["count"]) == ("never-joined-thread", 3)
    assert finding["start_routine"]["function"] == "minute_job"


@pytest.mark.parametrize("command", [("maps", "--json", "-p", "1"), ("scan", "--json")], ids=lambda c: c[0])
def test_commands_that_do_not_trace_work_in_a_container(command: tuple[str, ...]) -> None:
    ended = inside('"$@"; exit $?', sys.executable, "-m", "ebpftrace", *command)
    assert (ended.returncode, ended.stderr) == (0, "")
    json.loads(ended.stdout)


def test_a_pid_beyond_the_namespace_is_not_there() -> None:
    ended = inside('"$@"; exit $?', *TRACER, "-d", 0, "-p", 4_000_000)
    assert ended.returncode == 1
    assert "no process 4000000" in ended.stderr
