# SPDX-License-Identifier: Apache-2.0
"""`ebpftrace trace`: the lines of strace, whole, filtered in the kernel, with counted losses."""

from __future__ import annotations

import difflib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, Lines, Target, build
from trace_harness import STRACE, TRACE, by_task, run, whole_lines

_NO_END = ") = ?"


class Trace:
    """``trace`` of a running target, attached when the ``with`` block begins."""

    def __init__(self, target: Target, *options: object, command: tuple[str, ...] = TRACE) -> None:
        self.process = subprocess.Popen(
            [*command, *map(str, options), "-p", str(target.pid)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout = self.process.stdout
        self.stderr = Lines(self.process.stderr)

    def __enter__(self) -> Trace:
        assert self.stderr.until(lambda line: "attached" in line), self.stderr.seen
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def interrupt(self) -> str:
        """Ends it; what it printed."""
        self.process.send_signal(signal.SIGINT)
        text = self.stdout.read()
        assert self.process.wait(PATIENCE) == 0
        self.stderr.until(None)
        return text


@contextmanager
def traced(name: str, *arguments: object, options: tuple[object, ...] = ()) -> Iterator[tuple[Target, Trace]]:
    with Target(name, *arguments) as target, Trace(target, *options) as trace:
        yield target, trace


def differences(theirs: str, ours: str) -> list[str]:
    theirs_by_task, ours_by_task = by_task(theirs), by_task(ours)
    assert len(theirs_by_task) == len(ours_by_task)
    return [
        line
        for one, other in zip(theirs_by_task, ours_by_task)
        for line in difflib.unified_diff(returned(one, other), other, "strace", "trace", n=0, lineterm="")
    ]


def returned(theirs: list[str], ours: list[str]) -> list[str]:
    """Their lines; as ours a clone3 whose end they did not see, since the new thread executed at once."""
    lines = []
    for line in theirs:
        begun = line[: -len(_NO_END)] if line.startswith("clone3(") and line.endswith(_NO_END) else None
        lines.append(next((our for our in ours if begun and our.startswith(begun)), line))
    return lines


KNOWN_DIFFERENCES = {
    # strace forgets how the execve began that changed its tid.
    ("-z",): [
        "--- strace",
        "+++ trace",
        "@@ -3 +3 @@",
        "-execve() = 0",
        '+execve("{program}", ["{program!s:.32}"..., "leaf"], ADDRESS /* 0 vars */) = 0',
    ],
    # Without execve in the set nothing tells that the leader's end is not the end.
    ("-e", "trace=munmap,clone3,exit"): [
        "--- strace",
        "+++ trace",
        "@@ -1,0 +2 @@",
        "++++ exited with 0 +++",
    ],
}


@pytest.fixture(scope="module")
def calls() -> Path:
    return build("trace_calls")


def both(tmp_path: Path, calls: Path, *options: str) -> tuple[str, str]:
    """strace's trace of the program, and ours."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    assert run(*STRACE, *options, "-o", theirs, calls).returncode == 0
    result = run(*TRACE, *options, "-o", ours, "--", calls)
    assert (result.returncode, result.stderr) == (0, "" if "-qq" in options else "attached\n")
    return theirs.read_text(), ours.read_text()


@pytest.mark.usefixtures("numbers_are_unique")
@pytest.mark.parametrize("options", [(), ("-z",), ("-Z",), ("-qq",), ("-e", "trace=munmap,clone3,exit")])
def test_same_lines_as_strace(tmp_path: Path, calls: Path, options: tuple[str, ...]) -> None:
    theirs, ours = both(tmp_path, calls, *options)
    assert len(ours.splitlines()) > 15
    assert differences(theirs, ours) == [
        line.format(program=calls) for line in KNOWN_DIFFERENCES.get(options, [])
    ]
    assert "unfinished" not in ours
    # The very bytes, where nothing had to be normalised.
    same = "Invalid argument)"
    assert {line for line in ours.splitlines() if "NULL, 0, PROT_READ" in line and same in line} == {
        line.replace(f"{line.split()[0]:<5}", f"{ours.split()[0]:<5}")
        for line in theirs.splitlines()
        if "NULL, 0, PROT_READ" in line and same in line
    }


@pytest.mark.usefixtures("numbers_are_unique")
def test_same_lines_as_strace_when_attached_later(tmp_path: Path) -> None:
    texts = []
    for command in (STRACE, TRACE):
        log = tmp_path / command[0].replace("/", "_")
        with Target("trace_calls") as target, Trace(target, "-o", log, command=command) as trace:
            target.run()
            trace.process.send_signal(signal.SIGINT)
            trace.process.wait(PATIENCE)
        texts.append(log.read_text())
    theirs, ours = texts
    assert not differences(theirs, ours)


def test_columns_and_times(calls: Path) -> None:
    """The parts before and after the call, for each option as strace prints them."""
    call = r"brk\(NULL\) += 0x[0-9a-f]+"
    for options, before, after in [
        ((), "", ""),
        (("-t",), r"\d\d:\d\d:\d\d ", ""),
        (("-tt",), r"\d\d:\d\d:\d\d\.\d{6} ", ""),
        (("-ttt",), r"\d{10}\.\d{6} ", ""),
        (("-r", "-T"), r" {5}\d\.\d{6} ", r" <\d\.\d{6}>"),
        (("-t", "-r"), r"\d\d:\d\d:\d\d \(\+ {5}\d\.\d{6}\) ", ""),
    ]:
        for command in (STRACE, (*TRACE, "-e", "trace=brk")):
            separator = ["--"] if command[0] != "strace" else ["-o", "/dev/stdout"]
            output = run(*command, *options, *separator, calls, "leaf").stdout
            matching = [
                line for line in output.splitlines() if re.fullmatch(rf"\d+ +{before}{call}{after}", line)
            ]
            assert matching, (options, command[0], output[:500])
            assert all(line.index("= ") >= 40 for line in matching)


@pytest.mark.usefixtures("numbers_are_unique")
def test_a_time_is_when_the_call_began(calls: Path) -> None:
    """vfork returns after all that its child did: its line comes later, with an earlier time."""
    shown = run(*TRACE, "-ttt", "-e", "trace=vfork,exit_group", "-o", "/dev/stderr", "--", calls).stderr
    ended: dict[str, float] = {}
    children = []
    for line in shown.splitlines():
        match = re.fullmatch(r"(\d+) +(\d+\.\d{6}) (exit_group|vfork)\(\d*\) += (\S+)", line)
        if match and match[3] == "exit_group":
            ended[match[1]] = float(match[2])
        elif match and match[4] in ended:  # a child that executes lets its parent go before its end
            children.append(match[4])
            assert float(match[2]) < ended[match[4]], shown
    assert children


def test_processes_can_be_a_list() -> None:
    with (
        Target("trace_calls") as first,
        Target("trace_calls") as second,
        Trace(first, "-e", "trace=mremap", "-p", f"{second.pid}, {first.pid}") as trace,
    ):
        first.run()
        second.run()
        shown = trace.interrupt()
    of_each = [re.findall(rf"^{target.pid} +mremap", shown, re.MULTILINE) for target in (first, second)]
    assert len(of_each[0]) == len(of_each[1]) > 0


def test_summary_counts_as_strace_does(calls: Path) -> None:
    def counts(text: str) -> dict[str, tuple[str, str]]:
        rows = [line.split() for line in text.splitlines() if re.match(r" *\d", line)]
        return {row[-1]: (row[3], row[4] if len(row) > 5 else "") for row in rows}

    theirs = run(*STRACE, "-c", "-w", "-o", "/dev/stderr", calls).stderr
    ours = run(*TRACE, "-c", "--", calls).stdout.replace("ready\n", "").replace("done\n", "")
    assert counts(ours) == counts(theirs)
    assert ours.splitlines()[0] == theirs.splitlines()[0]


def test_both_a_summary_and_lines(calls: Path) -> None:
    text = run(*TRACE, "-C", "-e", "trace=brk", "-o", "/dev/stderr", "--", calls, "leaf").stderr
    assert re.search(r"^\d+ +brk\(", text, re.MULTILINE)
    assert re.search(r"^ *100\.00 +[\d.]+ +\d+ +1 +brk$", text, re.MULTILINE)


def test_min_bytes_keeps_what_is_big_and_what_has_no_size() -> None:
    with traced("trace_calls", options=("--min-bytes", 1 << 20)) as (target, trace):
        target.run()
        lines = [line for _, line in whole_lines(trace.interrupt())]
    sizes = [int(re.findall(r", (\d+)", line)[0]) for line in lines if line.startswith(("mmap", "munmap"))]
    assert any("10489856" in line for line in lines)
    assert sizes
    assert min(sizes) >= 1 << 20
    assert any(line.startswith("clone3(") for line in lines)
    assert not any("brk(" in line for line in lines[1:] if "0x1)" in line)


@pytest.mark.usefixtures("numbers_are_unique")
def test_children_are_left_alone_when_asked(calls: Path) -> None:
    result = run(*TRACE, "--no-follow-forks", "-o", "/dev/stderr", "--", calls)
    tasks = by_task(result.stderr.replace("attached\n", ""))
    assert len(tasks) == 1 + 3  # itself and its threads
    assert any(line.startswith("fork()") for line in tasks[0])


def test_stacks_name_the_callers() -> None:
    with traced("trace_calls", options=("-k", "-e", "trace=mmap,exit")) as (target, trace):
        target.run()
        text = trace.interrupt()
    stacks: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith(" > "):
            call = line
        stacks.setdefault(call, []).append(line)
    (own,) = (stack for call, stack in stacks.items() if "10489856" in call)
    functions = re.findall(r" > \S+\((\w+)(?: \(inlined\)|\+0x[0-9a-f]+)\) \[0x[0-9a-f]+\]", "\n".join(own))
    assert "mmap" in functions[0]  # and what the C library has inlined into it
    assert [function for function in functions if "mmap" not in function][:2] == ["maps", "main"]
    # Of its own calls, and of those of children that are gone before anybody can look at them.
    assert sum("exit(3)" in call for call in stacks) == 3
    for call, stack in stacks.items():
        if call.startswith(str(target.pid)) or "exit(3)" in call:
            assert len(stack) > 2 or "+++" in call, stack


def test_every_call_of_a_flood_is_printed_or_counted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with traced("flood", 500, 0, options=("-o", log)) as (target, trace):
        target.run()
        trace.interrupt()
        (done,) = target.facts("flooded")
        printed = "\n".join(trace.stderr.seen)
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d+ +(mmap|munmap)\(|--- ", line) for line in lines)
    lost = [int(line.split()[1]) for line in lines if line.startswith("---")]
    assert len(lines) - len(lost) + sum(lost) == 2 * done["pairs"]
    assert ("lost" in printed) == bool(lost)


def test_losses_are_in_the_stream_where_they_happened(tmp_path: Path) -> None:
    """A tracer that is stopped meanwhile can't print: what the buffer can't hold is counted."""
    log = tmp_path / "log"
    more_than_fits = 20_000
    with traced("flood", 3000, 0, more_than_fits, options=("-k", "-o", log)) as (target, trace):
        trace.process.send_signal(signal.SIGSTOP)
        target.run()
        trace.process.send_signal(signal.SIGCONT)
        trace.interrupt()
        (done,) = target.facts("flooded")
        printed = "\n".join(trace.stderr.seen)
    lines = [line for line in log.read_text().splitlines() if not line.startswith(" >")]
    lost = [int(line.split()[1]) for line in lines if line.startswith("---")]
    assert sum(lost) > 0
    assert len(lines) - len(lost) + sum(lost) == 2 * done["pairs"]
    assert f"lost: {sum(lost):,} calls" in printed


@pytest.mark.parametrize("name", ["flood", "trace_calls"])
def test_a_reader_that_goes_ends_it_quietly(name: str) -> None:
    """Also while the target makes no call at all (trace_calls waits)."""
    with Target(name, 60_000) as target, Trace(target) as trace:
        if name == "flood":
            target.go()
            assert "map(" in trace.stdout.readline()
        trace.stdout.close()
        assert trace.process.wait(PATIENCE) == 141
        trace.stderr.until(None)
        assert trace.stderr.seen == ["attached"]


def test_a_peer_that_closes_its_socket_ends_it_quietly() -> None:
    """A socket says so in other words than a pipe."""
    ours, theirs = socket.socketpair()
    with ours, Target("trace_calls") as target:
        with theirs:
            process = subprocess.Popen(
                [*TRACE, "-p", str(target.pid)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert process.stderr is not None
        stderr = Lines(process.stderr)
        try:
            assert stderr.until(lambda line: line == "attached"), stderr.seen
            ours.close()
            assert process.wait(PATIENCE) == 141
        finally:
            process.kill()
            process.wait()
        stderr.until(None)
        assert stderr.seen == ["attached"]


def test_duration_ends_it_and_the_target_goes_on() -> None:
    with traced("never_joined", options=("-d", 0.2)) as (target, trace):
        assert trace.process.wait(PATIENCE) == 0
        target.run()


def test_the_end_of_the_target_ends_it() -> None:
    with traced("trace_calls") as (target, trace):
        target.run()
        target.end()
        assert trace.process.wait(PATIENCE) == 0
        assert trace.stdout.read().endswith("+++ exited with 0 +++\n")
