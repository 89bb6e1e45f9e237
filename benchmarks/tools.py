# SPDX-License-Identifier: Apache-2.0
"""The tools that are compared: how each is started, attached and ended, and what it saw."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from benchmarks.perfdata import count_samples

ROOT = Path(__file__).resolve().parents[1]
ATTACH_SECONDS = 60.0
_END_SECONDS = 20.0
_SETTLE_SECONDS = 0.3
"""After it is attached, for what a tool still does then; and how long its probes must stay the same."""
_LOOK_SECONDS = 0.01

_CALLS = "mmap,munmap,mremap,brk,clone,clone3"
UNTRACED = "none"
FLOOR = "empty probes"
OURS = "ebpftrace"
OURS_WITHOUT_STACKS = "ebpftrace, no stacks"
OURS_THREADS_ONLY = "ebpftrace, threads only"
OUR_LINES = "ebpftrace trace"
OUR_FILTERED_LINES = "ebpftrace trace --min-bytes"


class CannotRun(Exception):
    """The tool can't be measured here; the message says why."""


@dataclass(frozen=True)
class Tool:
    """One tool; ``{pid}`` and ``{output}`` in its command are the process and a file."""

    name: str
    command: tuple[str, ...] = ()
    ready: str = ""
    """What it writes to stderr once it is attached; empty: its perf events tell."""
    gives_stacks: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    count: Optional[Callable[[Path], int]] = None
    """The number of calls of mmap and munmap in the tool's output."""


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if b"map(" in line and b"resumed" not in line)


def _count_reported(path: Path) -> int:
    calls = json.loads(path.read_text())["calls"]
    return int(calls["mmap"]) + int(calls["munmap"])


def _bpftrace(name: str, script: str) -> Tool:
    return Tool(
        name,
        ("bpftrace", str(ROOT / "benchmarks" / script), "{pid}"),
        gives_stacks=True,
        environment=(("BPFTRACE_MAP_KEYS_MAX", "131072"),),
    )


_PYTHON = sys.executable
_OURS = (
    _PYTHON,
    "-m",
    "ebpftrace",
    "mmap-leaks",
    "-p",
    "{pid}",
    "--until-interrupt",
    "--json",
    "-o",
    "{output}",
)
_GROWTH = (_PYTHON, "-m", "ebpftrace", "growth", "-p", "{pid}", "--until-interrupt", "-o", "{output}")
_OUR_LINES = (
    *(_PYTHON, "-m", "ebpftrace", "trace", "-e", f"trace={_CALLS}", "-p", "{pid}"),
    *("-o", "{output}"),
)
_PERF_RECORD = (
    *("perf", "record", "-q", "-B", "-o", "{output}", "-p", "{pid}"),
    *("-e", "syscalls:sys_exit_mmap,syscalls:sys_enter_munmap", "--call-graph"),
)
_PERF_FAULTS = ("perf", "record", "-q", "-B", "-o", "{output}", "-p", "{pid}", "-e", "page-faults", "-c", "1")

TOOLS = (
    Tool(UNTRACED),
    Tool(FLOOR, (_PYTHON, "-m", "benchmarks.empty_probes"), ready="attached"),
    Tool(OURS_WITHOUT_STACKS, (*_OURS, "--stack-bytes", "0"), ready="attached", count=_count_reported),
    Tool(OURS_THREADS_ONLY, (*_OURS, "--threads-only"), ready="attached", gives_stacks=True),
    Tool(OURS, _OURS, ready="attached", gives_stacks=True, count=_count_reported),
    Tool("ebpftrace growth", _GROWTH, ready="attached", gives_stacks=True),
    Tool("ebpftrace growth --no-rss", (*_GROWTH, "--no-rss"), ready="attached", gives_stacks=True),
    _bpftrace("bpftrace, ustack", "pairing.bt"),
    _bpftrace("bpftrace, ustack, threads", "threads.bt"),
    Tool("perf record, fp", (*_PERF_RECORD, "fp"), gives_stacks=True, count=count_samples),
    Tool("perf record, dwarf", (*_PERF_RECORD, "dwarf"), gives_stacks=True, count=count_samples),
    Tool("perf record, faults", (*_PERF_FAULTS, "--call-graph", "dwarf"), gives_stacks=True),
    Tool(
        "memleak (bcc)",
        ("memleak-bpfcc", "-p", "{pid}", "3600"),
        gives_stacks=True,
        # Debian's bcc wants kernel headers; ours do for it.
        environment=(("BCC_KERNEL_SOURCE", str(ROOT / "bpf")),),
    ),
    Tool(OUR_FILTERED_LINES, (*_OUR_LINES, "--min-bytes", str(1 << 20)), ready="attached"),
    Tool(OUR_LINES, _OUR_LINES, ready="attached", count=_count_lines),
    Tool(
        "perf trace -e", ("perf", "trace", "-e", _CALLS, "-o", "{output}", "-p", "{pid}"), count=_count_lines
    ),
    Tool(
        "strace -f -e",
        ("strace", "-f", "-e", f"trace={_CALLS}", "-o", "{output}", "-p", "{pid}"),
        ready="attached",
        count=_count_lines,
    ),
    Tool(
        "strace -f", ("strace", "-f", "-o", "{output}", "-p", "{pid}"), ready="attached", count=_count_lines
    ),
)


def tool_named(name: str) -> Tool:
    """Raises KeyError."""
    return {tool.name: tool for tool in TOOLS}[name]


class Attached:
    """A tool that traces a process."""

    def __init__(self, tool: Tool, pid: int, directory: Path) -> None:
        """Start it and wait until its probes are live.  Raises CannotRun."""
        self._tool = tool
        self.output = directory / "output"
        self._complaints = directory / "stderr"
        self.output.unlink(missing_ok=True)
        command = [part.format(pid=pid, output=self.output) for part in tool.command]
        if not shutil.which(command[0]):
            raise CannotRun(f"{command[0]} is not installed")
        self.began = time.monotonic()
        with self._complaints.open("wb") as complaints:
            try:
                self.process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **dict(tool.environment)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                )
            except OSError as error:
                raise CannotRun(f"{command[0]} does not start: {error.strerror}") from None
        try:
            self._await_ready()
            self.attach_seconds = time.monotonic() - self.began
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Detach; by force where a tool does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def seen(self) -> Optional[int]:
        """The number of calls that it reported, after its end; None if it reports none."""
        if self._tool.count is None or not self.output.exists():
            return None
        try:
            return self._tool.count(self.output)
        except (ValueError, KeyError, OSError):  # it was cut off, or ended by force
            return None

    def last_words(self) -> str:
        """The last that it wrote to stderr; how it ended where that is nothing."""
        lines = [line.strip() for line in self._complaints.read_text(errors="replace").splitlines()]
        words = [line for line in lines if line]
        return words[-1] if words else f"exit status {self.process.poll()}"

    def _await_ready(self) -> None:
        deadline = self.began + ATTACH_SECONDS
        activity, since = _Activity(0, 0, True), time.monotonic()
        while not self._said_ready():
            now = time.monotonic()
            if self.process.poll() is not None:
                raise CannotRun(self.last_words())
            if now > deadline:
                raise CannotRun(f"not attached within {ATTACH_SECONDS:.0f} s")
            if not self._tool.ready:
                found = _activity(self.process.pid)
                if found != activity:
                    activity, since = found, now
                elif activity.is_at_rest and now - since > _SETTLE_SECONDS:
                    return
            time.sleep(_LOOK_SECONDS)

    def _said_ready(self) -> bool:
        return bool(self._tool.ready) and self._tool.ready in self._complaints.read_text(errors="replace")


@contextmanager
def attached(tool: Tool, pid: int, directory: Path) -> Iterator[Optional[Attached]]:
    """Trace ``pid`` with a tool; None of UNTRACED.  Raises CannotRun."""
    if not tool.command:
        yield None
        return
    tracer = Attached(tool, pid, directory)
    try:
        time.sleep(_SETTLE_SECONDS)
        yield tracer
    finally:
        tracer.end()


class _Activity(NamedTuple):
    """Shows whether a tool without output is still attaching."""

    probes: int
    """Perf events that it has open: the probes of perf, bpftrace and bcc."""
    ticks: int
    """CPU time that it has used (proc(5), stat)."""
    is_running: bool

    @property
    def is_at_rest(self) -> bool:
        """It has probes, and waits."""
        return self.probes > 0 and not self.is_running


def _activity(pid: int) -> _Activity:
    probes = 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                probes += "[perf_event]" in str(link.readlink())
    except OSError:
        return _Activity(0, 0, True)
    return _Activity(probes, int(fields[11]) + int(fields[12]), fields[0] != "S")
