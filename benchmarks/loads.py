# SPDX-License-Identifier: Apache-2.0
"""The processes that are measured: they tell how fast they are, untraced and traced."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import socket
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Protocol

from benchmarks.reference import level_of, on_cpu, reference
from benchmarks.slices import Level, Slice
from benchmarks.tools import ROOT, CannotRun

_PATIENCE_SECONDS = 3.0
"""Beyond its time; a process that then has not answered makes no progress."""
_FREED_SECONDS = 60.0
"""Until a process answers that a tool held up and lets go."""
_CLIENTS = 10
"""Of each command."""
_REQUESTS = 2_000_000_000
"""More than there is time for."""
_PART_SECONDS = 0.02
"""Of the server's work, between two measurements of how long reference work takes."""


class LoadDied(Exception):
    """The measured process has ended, or never came back from what a tool did to it; says how."""


class Load(Protocol):
    """A process whose speed is measured."""

    @property
    def pid(self) -> int:
        """The process that is traced."""

    def work(self, seconds: float) -> Slice:
        """Work that long; nothing is done where the process did not answer.  Raises LoadDied."""

    def recover(self) -> None:
        """After a tool has let go: be ready for more work.  Raises LoadDied."""


@dataclass(frozen=True)
class Kind:
    """A kind of load."""

    name: str
    what: str
    argument: str = ""
    """Of ``load``; empty: the server."""
    is_bystander: bool = False
    """Another process than the measured one is traced."""
    is_pinned: bool = False
    """To one CPU: threads that work on several slow each other, more or less."""
    traced_calls: int = 0
    """Calls of mmap and munmap in an operation, 0 where that is not fixed."""


KINDS = (
    Kind("untouched", "mmap and munmap of 64 KiB", "untouched", traced_calls=2),
    Kind("touched", "mmap and munmap of 64 KiB, every page touched", "touched", traced_calls=2),
    Kind("faults", "a page is touched for the first time since madvise", "faults"),
    Kind("getppid", "getppid, which nobody traces", "getppid"),
    Kind("bystander", "getppid, in a process that is not traced", "getppid", is_bystander=True),
    Kind("threads", "pthread_create and join, 64 MiB stacks", "threads"),
    Kind("malloc", "malloc and free in many threads", "malloc", is_pinned=True),
    Kind("redis", "Redis, SET and GET by redis-benchmark, all on one CPU"),
)


def kind_named(name: str) -> Kind:
    """Raises KeyError."""
    return {kind.name: kind for kind in KINDS}[name]


def build_load() -> Path:
    """Compile ``load.c`` and return the program.  Raises CannotRun."""
    binary = ROOT / "build" / "load"
    binary.parent.mkdir(exist_ok=True)
    source = ROOT / "benchmarks" / "load.c"
    command = ["cc", "-O2", "-g", "-pthread", "-o", str(binary), str(source), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise CannotRun(f"load.c does not compile: {made.stderr.partition(chr(10))[0]}")
    return binary


class Process:
    """A process of ``load.c``; a context manager."""

    def __init__(self, argument: str, *, is_pinned: bool = False) -> None:
        self._process = subprocess.Popen(
            [str(build_load()), argument], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if is_pinned:
            os.sched_setaffinity(self._process.pid, {max(os.sched_getaffinity(0))})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._answers = self._process.stdin, self._process.stdout
        self._lines: queue.Queue[Optional[str]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._lines.get(timeout=_FREED_SECONDS)
        self._owes_answer = False

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._commands.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def work(self, seconds: float) -> Slice:
        """Work that long; nothing is done where it did not answer."""
        self.command(seconds * 1000, 0)
        return self.answer(seconds + _PATIENCE_SECONDS)

    def recover(self) -> None:
        """Take the answer that it owes.  Raises LoadDied."""
        if self._owes_answer and not self.answer(_FREED_SECONDS).done:
            raise LoadDied(f"the process did nothing for {_FREED_SECONDS:.0f} s after that")

    def command(self, first: float, second: float) -> None:
        """Give it work (load.c says which).  Raises LoadDied."""
        try:
            self._commands.write(f"{first:.0f} {second:.0f}\n")
            self._commands.flush()
        except OSError:
            raise LoadDied(self._end()) from None
        self._owes_answer = True

    def answer(self, patience: float = _FREED_SECONDS) -> Slice:
        """Wait for the end of its work.  Raises LoadDied."""
        try:
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            return Slice()
        if line is None:
            raise LoadDied(self._end())
        self._owes_answer = False
        done, *levels = line.split()
        triples = zip(levels[::3], levels[1::3], levels[2::3])
        return Slice(
            int(done), {int(number): Level(int(count), float(pace)) for number, count, pace in triples}
        )

    def _end(self) -> str:
        return f"the process ended under it, status {self._process.wait()}"

    def _read(self) -> None:
        with contextlib.suppress(ValueError), self._answers:
            for line in self._answers:
                self._lines.put(line)
        self._lines.put(None)


class Bystander:
    """Measures one process while another, idle one is traced."""

    def __init__(self, idle: Process, busy: Process) -> None:
        self._idle, self._busy = idle, busy

    @property
    def pid(self) -> int:
        """Of the idle process."""
        return self._idle.pid

    def work(self, seconds: float) -> Slice:
        """Of the busy one."""
        return self._busy.work(seconds)

    def recover(self) -> None:
        """Of the busy one."""
        self._busy.recover()


class Redis:
    """A Redis server under its own benchmark; a context manager."""

    def __init__(self, directory: Path) -> None:
        """Raises CannotRun."""
        for program in ("redis-server", "redis-benchmark"):
            if not shutil.which(program):
                raise CannotRun(f"{program} is not installed")
        path = str(directory / "redis.socket")
        server = ["redis-server", "--port", "0", "--appendonly", "no", "--unixsocket"]
        self._server = subprocess.Popen(
            [*server, path, "--save", ""], cwd=directory, stdout=subprocess.DEVNULL
        )
        self._socket = _connected(path)
        # Two at once: one alone would do them in turns, at different speeds.
        self._clients = [_redis_clients(path, command) for command in ("set", "get")]
        # All on one CPU: which of them share one, and how long an idle one takes to wake, would be most of
        # what is measured, and reference work shows what the machine does to that CPU only.
        self._cpu = max(os.sched_getaffinity(0))
        for process in (self._server, *self._clients):
            os.sched_setaffinity(process.pid, {self._cpu})

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._clients, self._server):
            process.kill()
            process.wait()
        self._socket.close()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._server.pid

    def work(self, seconds: float) -> Slice:
        """Requests that the server answers.  Raises LoadDied."""
        end = time.monotonic() + seconds
        total = 0
        paces: dict[int, list[float]] = defaultdict(list)
        with on_cpu(self._cpu):
            after = reference()
            while time.monotonic() < end:
                before = after
                processed, began = self._processed(), time.monotonic()
                time.sleep(_PART_SECONDS)
                done = self._processed() - processed - 1  # our question
                took = time.monotonic() - began
                after = reference()
                if done:
                    total += done
                    paces[level_of(max(before, after))].append(took / done)
        levels = {level: Level(len(of), statistics.median(of)) for level, of in paces.items()}
        return Slice(total, levels) if total else Slice()

    def recover(self) -> None:
        """Nothing: a server that is slow answers all the same."""

    def _processed(self) -> int:
        answer = b""
        try:
            self._socket.sendall(b"INFO stats\r\n")
            while b"total_commands_processed:" not in answer or not answer.endswith(b"\r\n"):
                part = self._socket.recv(1 << 16)
                if not part:
                    raise LoadDied("the server ended under it")
                answer += part
        except OSError as error:
            raise LoadDied(f"the server does not answer: {error}") from None
        if any(clients.poll() is not None for clients in self._clients):
            raise LoadDied("the server's clients ended under it")
        return int(answer.partition(b"total_commands_processed:")[2].partition(b"\r\n")[0])


def _redis_clients(path: str, command: str) -> subprocess.Popen[bytes]:
    arguments = ["-s", path, "-c", str(_CLIENTS), "-t", command, "-n", str(_REQUESTS), "-q"]
    return subprocess.Popen(
        ["redis-benchmark", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _connected(path: str) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_FREED_SECONDS)
        try:
            connection.connect(path)
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise CannotRun(f"redis-server does not answer: {error.strerror}") from None
            time.sleep(0.05)


@contextmanager
def running(kind: Kind, directory: Path) -> Iterator[Load]:
    """Start what a kind of load measures.  Raises CannotRun."""
    if not kind.argument:
        with Redis(directory) as server:
            yield server
    elif kind.is_bystander:
        with Process(kind.argument) as idle, Process(kind.argument) as busy:
            yield Bystander(idle, busy)
    else:
        with Process(kind.argument, is_pinned=kind.is_pinned) as process:
            yield process
