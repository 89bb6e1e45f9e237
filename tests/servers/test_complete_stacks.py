# SPDX-License-Identifier: Apache-2.0
"""How many stacks of real programs are unwound to their outermost frame."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from test_no_false_leak import Starter

from ebpftrace.model import Report
from ebpftrace.sessions.leak_watch import LeakWatch
from ebpftrace.sessions.mmap_leaks import Settings, run
from ebpftrace.unwind.resolve import NOTE_TRUNCATED

SECONDS = 10.0
MIN = 0.99


class Counting(servers.Quiet):
    """An observer of the session that counts the stacks it came to know, each as often as it was copied."""

    def __init__(self) -> None:
        self.copies: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()

    def report(self, report: Report, watch: LeakWatch) -> None:  # noqa: ARG002
        stacks = watch._stacks
        for ways in stacks._by_site.values():
            for number, copies in ways.items():
                stack = stacks.stack(number)
                kind = "complete" if stack.complete else "cut" if NOTE_TRUNCATED in stack.note else "stopped"
                self.copies[kind] += copies
                if kind == "stopped":
                    functions = [frame.function or frame.module or "?" for frame in stack.frames]
                    self.stopped[" < ".join([*functions[:3], "...", *functions[-3:]])] += copies


@contextmanager
def busy(server: servers.Server) -> Iterator[None]:
    """The server under load, from another thread: the session wants the main one."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.01):
            server.load()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


@pytest.mark.parametrize(
    "start", [servers.mariadb, servers.java, servers.python, servers.node], ids=lambda start: start.__name__
)
def test_stacks_that_fit_the_copy_are_complete(start: Starter, tmp_path: Path) -> None:
    with start(tmp_path) as server:
        server.load()
        counting = Counting()
        with busy(server):
            run(Settings(pids=[server.pid], duration=SECONDS, copies_per_second=1000), counting)
    fit = counting.copies["complete"] + counting.copies["stopped"]
    print(start.__name__, dict(counting.copies))
    for functions, copies in counting.stopped.most_common(8):
        print(copies, functions)
    assert fit
    assert counting.copies["complete"] >= MIN * fit
