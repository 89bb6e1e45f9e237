# SPDX-License-Identifier: Apache-2.0
"""Every look at /proc, read of memory and access to a table fails once, each in its turn.

What comes then is a report or one clear line (CannotTrace), and no descriptor is left open.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import Target

from ebpftrace.capture import tables
from ebpftrace.errors import CannotTrace
from ebpftrace.model import EndedBy, Report
from ebpftrace.procfs.target import Target as Process
from ebpftrace.procfs.target import open_target
from ebpftrace.sessions.ending import Libcs
from ebpftrace.sessions.leak_watch import LeakWatch
from ebpftrace.sessions.searching import MemorySearcher
from ebpftrace.sessions.tracing import begin_loading, open_tracer
from ebpftrace.unwind.engine import Engine

MAX_TURNS = 3000
FAULTS = [
    (os, "open", errno.ENOENT),
    (os, "open", errno.EACCES),
    (os, "open", errno.EMFILE),
    (os, "read", errno.ESRCH),
    (os, "read", errno.EIO),
    (os, "pread", errno.EIO),
    (os, "scandir", errno.ENOENT),
    (os, "scandir", errno.EIO),
    (os, "readlink", errno.EACCES),
    (tables, "bpf", errno.EIO),
    (tables, "bpf", errno.E2BIG),
]


class Fault:
    """A function that fails at one call and works at all others."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, code: int, saved: int = -1
    ) -> None:
        """``saved``: a file descriptor whose calls never fail."""
        self._spared = saved
        self._real = getattr(place, name)
        self._code = code
        self._left = 0
        monkeypatch.setattr(place, name, self)

    def arm(self, turn: int) -> None:
        self._left = turn

    @property
    def struck(self) -> bool:
        """It has failed since it was armed."""
        return self._left <= 0

    def disarm(self) -> None:
        self._left = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # Of paths only those that a target can take away.
        first = arguments[0]
        if (isinstance(first, int) and first != self._spared) or str(first).startswith("/proc/"):
            self._left -= 1
            if self._left == 0:
                raise OSError(self._code, os.strerror(self._code))
        return self._real(*arguments, **options)


def in_turn(fault: Fault, job: Callable[[], object]) -> tuple[int, int]:
    """Does the job until it is through without the fault; how many faults, and how many ended it."""
    reported: list[str] = []
    for turn in range(1, MAX_TURNS):
        fault.arm(turn)
        try:
            job()
        except CannotTrace as refusal:
            reported.append(str(refusal))
        if not fault.struck:
            fault.disarm()
            assert all(len(line.splitlines()) == 1 for line in reported), reported
            return turn - 1, len(reported)
        fault.disarm()
    raise AssertionError("the job never ends")


def watched(target: Process, engine: Engine) -> LeakWatch:
    return LeakWatch(target, engine, Libcs(), min_age=0, wants_stacks=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture
def target() -> Iterator[Target]:
    with Target("never_joined", 3) as target:
        target.run()
        yield target


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        engine.start()
        assert engine.can_unwind, engine.unavailable_reason
        yield engine


@pytest.mark.parametrize(
    ("place", "name", "code"),
    [fault for fault in FAULTS if fault[0] is os],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else getattr(value, "__name__", value),
)
def test_reading_and_verdict(
    place: Any, name: str, code: int, target: Target, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mmap-leaks -d 0``: hold the target, read its thread lists, report."""

    def job() -> None:
        with open_target(target.pid) as held, watched(held, engine) as watch:
            watch.read_beforehand()
            assert isinstance(watch.verdict(MemorySearcher()), Report)

    job()
    before = descriptors()
    with monkeypatch.context() as patched:
        tried, refused = in_turn(Fault(patched, place, name, code), job)
    print(f"{name} {errno.errorcode[code]}: {tried} tried, {refused} refused")
    assert tried
    assert descriptors() <= before  # fewer where the worker could not be talked to
    job()


def test_report_of_a_trace(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attached once; a report again and again, each with another fault."""
    program = Target("orphans", "kept", 3)
    with program as target, open_target(target.pid) as held, watched(held, engine) as watch:
        watch.read_beforehand()
        with begin_loading([target.pid]) as loading, open_tracer([watch], loading) as tracer:
            watch.attach(tracer)
            target.run()
            tracer.poll()

            def job() -> None:
                watch.housekeep(tracer, crowded=True)
                assert watch.report(tracer, EndedBy.INTERVAL, MemorySearcher()).findings

            job()
            for place, name, code in FAULTS:
                before = descriptors()
                with monkeypatch.context() as patched:
                    # The tracer's own pipe is nobody's to break.
                    fault = Fault(patched, place, name, code, saved=tracer.fileno() if name == "read" else -1)
                    tried, refused = in_turn(fault, job)
                print(f"{name} {errno.errorcode[code]}: {tried} tried, {refused} refused")
                assert descriptors() <= before
                watch.ended_by = None  # a fault that looks like the target's end is believed
            job()


@pytest.mark.parametrize("code", [errno.EIO, errno.E2BIG, errno.EPERM])
def test_tables_that_refuse_at_attach(
    code: int, target: Target, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_target(target.pid) as held, watched(held, engine) as watch:
        watch.read_beforehand()
        with (
            begin_loading([target.pid]) as loading,
            open_tracer([watch], loading) as tracer,
            monkeypatch.context() as patched,
        ):
            tried, refused = in_turn(Fault(patched, tables, "bpf", code), lambda: watch.attach(tracer))
    assert tried == refused > 2
