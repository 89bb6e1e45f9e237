# SPDX-License-Identifier: Apache-2.0
"""Starts targets and the tracer, and lets a test tell them when: no sleeps, every wait ends.

Addresses and sizes are bytes; an area is (start, end), end excluded.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Optional

import jsonschema

from ebpftrace.capture.btf import Btf

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ROOT / "tests" / "targets"
SCHEMA = ROOT / "ebpftrace" / "report" / "schema" / "mmap-leaks-1.json"
TRACER = (sys.executable, "-m", "ebpftrace", "mmap-leaks")
PATIENCE = float(os.environ.get("EBPFTRACE_PATIENCE", "180"))
"""Seconds after which a wait has failed; generous, since compiling BPF on a busy machine is slow."""

Area = tuple[int, int]
Json = dict[str, Any]


def build(name: str) -> Path:
    """Path of the compiled target; safe when several test processes build at once."""
    binary = TARGETS / "bin" / name
    with (TARGETS / "Makefile").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-s", "-C", str(TARGETS), f"bin/{name}"], capture_output=True, text=True, check=False
        )
    assert made.returncode == 0, f"target {name} does not build:\n{made.stderr}"
    return binary


def eventually(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Waits for something that has no event to wait for (the kernel frees objects in its own time)."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(0.01)


def read_unless_gone(file: Path) -> str:
    """A file of /proc; empty where its thread has ended, or its descriptor was closed, meanwhile."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Lines:
    """The lines of a pipe, read by a thread, so that the writer never blocks and a wait can end."""

    def __init__(self, pipe: IO[str]) -> None:
        self.seen: list[str] = []
        self._queue: queue.Queue[Optional[str]] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, wanted: Optional[Callable[[str], bool]], patience: float = PATIENCE) -> bool:
        """Reads until a line is ``wanted``, or to the end; whether there was such a line."""
        deadline = time.monotonic() + patience
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no more lines within {patience} s, seen {self.seen[-20:]}") from None
            if line is None:
                self._queue.put(None)
                return False
            self.seen.append(line)
            if wanted is not None and wanted(line):
                return True


class Program:
    """A binary of a source of tests/targets that runs; see target.h for what it says and waits for."""

    def __init__(self, binary: Path, *arguments: object, **popen: object) -> None:
        self.process = subprocess.Popen(
            [str(binary), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            **popen,  # type: ignore[call-overload]
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin = self.process.stdin
        self._lines = Lines(self.process.stdout)
        self.pid = self.process.pid

    def wait_for(self, word: str, patience: float = PATIENCE) -> None:
        found = self._lines.until(lambda line: line == word, patience)
        assert found, f"target ended before it said {word}: {self._lines.seen[-5:]}"

    def go(self) -> None:
        self._stdin.write("go\n")
        self._stdin.flush()

    def run(self, patience: float = PATIENCE) -> None:
        """Lets the hazard happen, and returns when it has."""
        self.go()
        self.wait_for("done", patience)

    def end(self) -> int:
        """Closes stdin, which ends a target; its exit status (-signal if killed)."""
        self._stdin.close()
        self._lines.until(None)
        return self.process.wait(PATIENCE)

    def facts(self, event: str) -> list[Json]:
        """The ground truth it printed so far, of one kind."""
        facts = [json.loads(line) for line in self._lines.seen if line.startswith("{")]
        failed = [fact for fact in facts if fact["event"] == "failed"]
        assert not failed, failed
        return [fact for fact in facts if fact["event"] == event]

    def __enter__(self) -> Program:
        self.wait_for("ready")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Target(Program):
    """A program of tests/targets, by its name, as their Makefile builds it."""

    def __init__(self, name: str, *arguments: object) -> None:
        super().__init__(build(name), *arguments)


@dataclass(frozen=True)
class Result:
    """What a run of the tracer left."""

    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> Json:
        """The report, checked against its schema."""
        assert self.stdout, f"no report, exit status {self.status}, stderr:\n{self.stderr}"
        report: Json = json.loads(self.stdout)
        jsonschema.validate(report, json.loads(SCHEMA.read_text()))
        return report


class Tracer:
    """``mmap-leaks --json`` with the given options, attached when the ``with`` block begins."""

    def __init__(self, *options: object) -> None:
        self.process = subprocess.Popen(
            [*TRACER, "--json", "--top", "1000000", *map(str, options)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._stdout = Lines(self.process.stdout)
        self._stderr = Lines(self.process.stderr)
        self.pid = self.process.pid

    def __enter__(self) -> Tracer:
        attached = self._stderr.until(lambda line: "attached" in line)
        assert attached, f"the tracer did not attach: {self._stderr.seen}"
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def printed(self) -> list[str]:
        """Its lines on stderr, as far as they were waited for."""
        return self._stderr.seen

    def wait_to_say(self, text: str) -> str:
        """Its next line on stderr that has ``text`` in it."""
        assert self._stderr.until(lambda line: text in line), f"it never said {text!r}: {self.printed}"
        return self.printed[-1]

    def wait_for_report(self) -> None:
        """With ``-i``: reads the next report, which stays a part of the result."""
        assert self._stdout.until(lambda _: True), f"the trace ended without another report: {self.printed}"

    def interrupt(self, number: int = signal.SIGINT) -> Result:
        """Ends the trace by a signal, and returns what it reported."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> Result:
        self._stdout.until(None)
        self._stderr.until(None)
        status = self.process.wait(PATIENCE)
        stderr = "\n".join(self._stderr.seen)
        assert "Traceback" not in stderr, stderr
        return Result(status, "\n".join(self._stdout.seen), stderr)

    def wake_ups(self) -> int:
        """How often its threads have waited for something so far, and gone on."""
        return sum(
            int(line.split()[1])
            for status in Path(f"/proc/{self.pid}/task").glob("*/status")
            for line in read_unless_gone(status).splitlines()
            if line.startswith("voluntary_ctxt_switches:")
        )

    def bpf_ids(self, kind: str) -> set[int]:
        """Ids of the BPF objects it holds; ``kind`` is "prog" or "map"."""
        ids = set()
        for info in Path(f"/proc/{self.pid}/fdinfo").iterdir():
            for line in read_unless_gone(info).splitlines():
                key, _, value = line.partition(":")
                if key == f"{kind}_id":
                    ids.add(int(value))
        return ids


def run_tracer(*options: object, cwd: Path = ROOT, **popen: Any) -> Result:
    """Runs ``mmap-leaks`` to its end, with nobody to interrupt it."""
    ended = subprocess.run(
        [*TRACER, *map(str, options)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **popen,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return Result(ended.returncode, ended.stdout, ended.stderr)


@contextmanager
def traced(target: Target, *options: object) -> Iterator[Tracer]:
    """A tracer attached to a target until the test interrupts it."""
    with Tracer("-p", target.pid, "--until-interrupt", *options) as tracer:
        yield tracer


def trace(name: str, *arguments: object, options: Iterable[object] = ()) -> tuple[Target, Json]:
    """Traces the whole hazard of a target; the target (ended) and the report."""
    with Target(name, *arguments) as target, traced(target, *options) as tracer:
        target.run()
        result = tracer.interrupt()
        assert target.process.poll() is None, "the target did not survive the trace"
        target.end()
    assert result.status == 0, result.stderr
    assert result.report["window"]["ended_by"] == "interrupt"
    return target, result.report


# --- areas ------------------------------------------------------------------------------------


def union(areas: Iterable[Area]) -> list[Area]:
    """The same bytes as ascending areas that do not touch."""
    merged: list[Area] = []
    for start, end in sorted(areas):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def minus(areas: Iterable[Area], others: Iterable[Area]) -> list[Area]:
    """The bytes of ``areas`` that are in none of ``others``."""
    rest: list[Area] = []
    cuts = union(others)
    first = 0
    for start, end in union(areas):
        while first < len(cuts) and cuts[first][1] <= start:
            first += 1
        position = start
        for cut_start, cut_end in cuts[first:]:
            if cut_start >= end:
                break
            if cut_start > position:
                rest.append((position, cut_start))
            position = max(position, cut_end)
        if position < end:
            rest.append((position, end))
    return rest


def within(areas: Iterable[Area], bounds: Iterable[Area]) -> list[Area]:
    """The bytes of ``areas`` that are inside ``bounds``."""
    return minus(areas, minus(areas, bounds))


def size(areas: Iterable[Area]) -> int:
    return sum(end - start for start, end in areas)


def fact_areas(facts: Iterable[Json]) -> list[Area]:
    """The areas that lines of ground truth tell of."""
    return [(fact["start"], fact["start"] + fact["length"]) for fact in facts]


def mapped(pid: int) -> list[Area]:
    """What /proc says is mapped, without the areas that no mmap call makes (heap, stack, vdso ...).

    Read through a live task: the process's own file is empty once its leader has exited.
    """
    for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
        areas = []
        for line in read_unless_gone(task / "maps").splitlines():
            bounds, _, rest = line.partition(" ")
            start, end = (int(part, 16) for part in bounds.split("-"))
            if not rest.endswith(("[heap]", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")):
                areas.append((start, end))
        if areas:
            return union(areas)
    raise AssertionError(f"process {pid} has no maps")


# --- reports ----------------------------------------------------------------------------------


ORPHANED = ("orphaned-mapping", "handed-over")
"""Verdicts on mappings that outlive the thread that made them, whether somebody still has their address."""


def reported(report: Json, *verdicts: str) -> list[Json]:
    """The mappings of all findings with one of these verdicts (all findings without any)."""
    return [
        mapping
        for finding in report["findings"]
        if not verdicts or finding["verdict"] in verdicts
        for mapping in finding["mappings"]
    ]


def leaks(report: Json) -> list[Json]:
    return [finding for finding in report["findings"] if finding["leak"]]


def pieces(mapping: Json) -> list[Area]:
    """What is left of a reported mapping."""
    return [(int(piece["start"], 16), int(piece["end"], 16)) for piece in mapping["pieces"]]


def reported_areas(report: Json, *verdicts: str) -> list[Area]:
    """The pieces of all these mappings, each as often as it is reported."""
    return [piece for mapping in reported(report, *verdicts) for piece in pieces(mapping)]


def ledger_areas(ledger: Json) -> list[Area]:
    """All that the ledger holds; overlapping entries would hide in a union, so they are refused."""
    areas = [tuple(piece) for mapping in ledger["mappings"] for piece in mapping["pieces"]]
    areas += [tuple(area) for area in ledger["baseline"]]
    assert size(areas) == size(union(areas)), "entries of the ledger overlap"
    return union(areas)


def no_losses(report: Json) -> bool:
    """Where the kernel skips runs, those of any process count as lost events: they prove nothing."""
    ignored = ("events",) if kernel_skips_runs() else ()
    return not any(count for kind, count in report["losses"].items() if kind not in ignored)


@functools.cache
def kernel_skips_runs() -> bool:
    """Programs at syscall tracepoints run preemptibly (kernel/trace/bpf_trace.c of Linux 7)."""
    return Btf.of_running_kernel().has_name("trace_call_bpf_faultable")
