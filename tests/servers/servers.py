# SPDX-License-Identifier: Apache-2.0
"""Starts servers with their data in a directory of their own, puts load on them, and stops them.

They listen on a Unix socket or on the loopback address only.  A load is called again and again
while the trace lasts, takes a second or so each time, and returns.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
from harness import PATIENCE, Lines, eventually

from ebpftrace.capture.tracer import Tracer
from ebpftrace.model import CommandEnd, Processes, Report, UnjoinedBefore
from ebpftrace.sessions.leak_watch import LeakWatch

HERE = Path(__file__).parent
CLIENTS = 4


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    pid: int
    load: Callable[[], None]
    socket: str = ""


class Quiet:
    """An observer of a session of mmap-leaks that does nothing; subclasses override what they want to see."""

    def examined(self, report: Report) -> None:
        pass

    def attached(self, watches: Sequence[LeakWatch]) -> None:
        pass

    def unjoined_before(self, unjoined_before: UnjoinedBefore) -> None:
        pass

    def searching(self, part: float) -> None:
        pass

    def reporting(self, areas: int) -> None:
        pass

    def command_ended(self, end: CommandEnd) -> None:
        pass

    def progress(self, watches: Sequence[LeakWatch], tracer: Tracer, seconds_left: Optional[float]) -> None:
        pass

    def report(self, report: Report, watch: LeakWatch) -> None:
        pass

    def followed(self, processes: Processes) -> None:
        pass


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextmanager
def process(
    *command: object, ready: Optional[Callable[[str], bool]] = None, **popen: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process until the block ends, and the line by which it said that it is ready."""
    started = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        **popen,  # type: ignore[call-overload]
    )
    try:
        assert started.stdout is not None
        lines = Lines(started.stdout)
        if ready is not None:
            assert lines.until(ready), f"{command[0]} ended: {lines.seen[-10:]}"
        yield started, lines.seen[-1] if lines.seen else ""
    finally:
        started.terminate()
        try:
            started.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextmanager
def mariadb(directory: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Server]:
    """One thread for each connection, none kept for the next."""
    need("mariadbd", "mariadb-install-db", "mariadb-slap")
    data, path = directory / "data", directory / "sock"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
    install.append("--auth-root-authentication-method=normal")
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
    options = ("--skip-networking", "--thread-cache-size=0", "--innodb-buffer-pool-size=32M", "--user=root")
    command = ("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={path}", *options)
    slap = ["mariadb-slap", "--no-defaults", f"--socket={path}", "--user=root", f"--concurrency={CLIENTS}"]
    slap += [
        "--number-of-queries=400",
        "--detach=2",
        "--query=SELECT BENCHMARK(1000, MD5('x'))",
        "--silent",
        "--no-drop",
    ]

    def load() -> None:
        subprocess.run(slap, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)

    with process(*command, ready=lambda line: "ready for connections" in line, env=environment) as started:
        server = Server(started[0].pid, load, str(path))
        query(server, "CREATE DATABASE mysqlslap")
        yield server


def query(server: Server, text: str) -> str:
    """Ask MariaDB, over a connection of its own; returns the lines of the answer."""
    asked = subprocess.run(
        [*_client(server), "-e", text], check=True, capture_output=True, text=True, timeout=PATIENCE
    )
    return asked.stdout


@contextmanager
def connection(server: Server) -> Iterator[Callable[[str], None]]:
    """A connection to MariaDB; what it is asked has one line for an answer, which is waited for."""
    command = [*_client(server), "--unbuffered"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        asking, lines = client.stdin, Lines(client.stdout)

        def ask(text: str) -> None:
            print(f"{text};", file=asking, flush=True)
            assert lines.until(bool), f"no answer to {text}"

        yield ask
        asking.close()


def _client(server: Server) -> list[str]:
    return ["mariadb", "--no-defaults", f"--socket={server.socket}", "--user=root", "--skip-column-names"]


@contextmanager
def redis(directory: Path) -> Iterator[Server]:
    need("redis-server", "redis-benchmark")
    path = directory / "sock"
    options = ("--port", "0", "--save", "", "--lazyfree-lazy-user-del", "yes")
    command = ("redis-server", "--unixsocket", path, "--dir", directory, *options)
    benchmark = [
        "redis-benchmark",
        "-s",
        str(path),
        "-q",
        "-n",
        "10000",
        "-c",
        "20",
        "-t",
        "set,get,lpush,mset",
    ]

    def load() -> None:
        subprocess.run(benchmark, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)

    with process(*command, ready=lambda line: "eady to accept connections" in line) as (server, _):
        eventually(path.exists, "redis listens")
        yield Server(server.pid, load)


@contextmanager
def memcached(directory: Path) -> Iterator[Server]:
    need("memcached")
    path = directory / "sock"

    def load() -> None:
        for connection in range(50):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                for number in range(20):
                    client.sendall(b"set key%d-%d 0 0 5000\r\n%b\r\n" % (connection, number, bytes(5000)))
                    assert client.recv(100) == b"STORED\r\n"

    with process("memcached", "-s", path, "-u", "root", "-m", "64", "-t", "4") as (server, _):
        eventually(path.exists, "memcached listens")
        yield Server(server.pid, load)


def _http_load(port: int) -> Callable[[], None]:
    def client() -> None:
        for _ in range(50):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
                answer.read()

    def load() -> None:
        clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()

    return load


@contextmanager
def java(directory: Path) -> Iterator[Server]:
    need("java", "javac")
    subprocess.run(["javac", "-d", directory, HERE / "ChurnServer.java"], check=True)
    command = ("java", "-Xmx128m", "-cp", directory, "ChurnServer")
    with process(*command, ready=lambda line: line.startswith("port ")) as (server, line):
        yield Server(server.pid, _http_load(int(line.split()[1])))


@contextmanager
def node(_directory: Path) -> Iterator[Server]:
    need("node")
    command = ("node", HERE / "server_node.js")
    with process(*command, ready=lambda line: line.startswith("port ")) as (server, line):
        yield Server(server.pid, _http_load(int(line.split()[1])))


@contextmanager
def python(_directory: Path) -> Iterator[Server]:
    """Loads itself."""
    with process(sys.executable, HERE / "pool_program.py", ready=lambda line: line == "ready") as (server, _):
        yield Server(server.pid, lambda: None)
