"""The main job, told once: hold the targets, attach, watch, detach, report."""

from __future__ import annotations

import gc
import os
import resource
import select
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, Protocol

from ebpftrace.command import Command
from ebpftrace.interrupts import Interrupts
from ebpftrace.kernel.layout import Sizes
from ebpftrace.kernel.tracer import KernelEvent, RawCopy, Tracer
from ebpftrace.model import EndedBy, Report, TracerCost
from ebpftrace.process.procfs import task_ids
from ebpftrace.process.status import max_map_count
from ebpftrace.process.target import open_target
from ebpftrace.stacks.engine import Engine
from ebpftrace.watch import Watch

_POLL_SECONDS = 0.1
"""How long events may wait to be handled; the kernel side does not wake us for each."""

_LEAST_THREADS = 16_384
_SITES = 16_384


@dataclass(frozen=True)
class Settings:
    """What to trace and for how long."""

    pids: Sequence[int] = ()
    command: Sequence[str] = ()
    """Program and arguments to start and trace instead of a running process."""
    duration: Optional[float] = 30.0
    """Seconds; None: until interrupted."""
    interval: Optional[float] = None
    """Seconds between reports; None: one report at the end."""
    min_age: int = 1_000_000_000
    """ns; an owner that exited more recently has just exited."""
    max_mappings: Optional[int] = None
    """Rows in the kernel's ledger; None: as many as the targets can have mappings."""
    stack_bytes: int = 16_384
    copies_per_second: int = 50


class Observer(Protocol):
    """Who is told how the session goes."""

    def looked(self, report: Report) -> None:
        """What is wrong with a process before tracing begins."""

    def attached(self, watches: Sequence[Watch]) -> None:
        """All probes are live and the baselines are read; a COMMAND is about to start."""

    def progress(self, watches: Sequence[Watch], tracer: Tracer, seconds_left: Optional[float]) -> None:
        """Some time has passed."""

    def report(self, report: Report, watch: Watch) -> None:
        """A report is made: one for each address space at its end, and at each interval."""


def run(settings: Settings, observer: Observer) -> None:
    """Trace and report.  Ended by the duration, a signal, or the end of all targets.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    with ExitStack() as held:
        command = held.enter_context(Command(settings.command)) if settings.command else None
        pids = [command.pid] if command else settings.pids
        engine = held.enter_context(Engine())
        program = command.program if command else ""
        watches = [
            held.enter_context(
                Watch(
                    held.enter_context(open_target(pid)),
                    engine,
                    settings.min_age,
                    settings.stack_bytes > 0,
                    program,
                )
            )
            for pid in pids
        ]
        interrupts = held.enter_context(Interrupts())
        if not command:
            for watch in watches:
                watch.look()
            if settings.duration == 0:
                # Who exited this very moment may still be joined: a second look tells.
                select.select([interrupts.fileno()], [], [], settings.min_age / 1e9)
                for watch in watches:
                    observer.report(_without_collector(watch.verdict), watch)
                return
        tracer = held.enter_context(_tracer(settings, watches))
        for watch in watches:
            if command:
                watch.attach_at_exec(tracer)
            else:
                watch.attach(tracer)
        cost = _Cost()
        if not command:
            for watch in watches:
                observer.looked(_without_collector(watch.verdict))
        observer.attached(watches)
        if command:
            command.go()
        ended_by = _follow(settings, observer, tracer, watches, interrupts, cost)
        for watch in watches:
            observer.report(
                cost.told(_without_collector(watch.report, tracer, watch.ended_by or ended_by)), watch
            )


def _follow(
    settings: Settings,
    observer: Observer,
    tracer: Tracer,
    watches: Sequence[Watch],
    interrupts: Interrupts,
    cost: _Cost,
) -> EndedBy:
    """Handle events until the trace ends; return why it does."""
    began = time.monotonic()
    ends = None if settings.duration is None else began + settings.duration
    next_report = None if settings.interval is None else began + settings.interval
    while True:
        living = [watch for watch in watches if watch.ended_by is None]
        if not living:
            return EndedBy.TARGET_EXIT
        waits = [moment - time.monotonic() for moment in (ends, next_report) if moment is not None]
        # Not poll(2) on the ring buffers: a wake-up for each event would cost the target.
        readable = [interrupts.fileno(), *(watch.target.fileno() for watch in living)]
        select.select(readable, [], [], max(0.0, min([_POLL_SECONDS, *waits])))
        tracer.poll()
        for watch in living:
            watch.tend(tracer)
        if interrupts.received:
            return EndedBy.INTERRUPT
        now = time.monotonic()
        if ends is not None and now >= ends:
            return EndedBy.DURATION
        observer.progress(watches, tracer, None if ends is None else ends - now)
        if next_report is not None and settings.interval is not None and now >= next_report:
            next_report = now + settings.interval
            for watch in living:
                observer.report(cost.told(_without_collector(watch.report, tracer, EndedBy.INTERVAL)), watch)


def _without_collector(make: Callable[..., Report], *arguments: Any) -> Report:
    """Make a report with Python's cycle collector off: it would walk all living objects again and again."""
    gc.disable()
    try:
        return make(*arguments)
    finally:
        gc.enable()


class _Cost:
    """What the tracer itself has used since it attached."""

    def __init__(self) -> None:
        self._from = self._cpu_seconds()

    def told(self, report: Report) -> Report:
        """The report with the cost up to now."""
        return replace(report, cost=TracerCost(cpu_seconds=self._cpu_seconds() - self._from))

    @staticmethod
    def _cpu_seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def _tracer(settings: Settings, watches: Sequence[Watch]) -> Tracer:
    by_space = dict(enumerate(watches))

    def on_event(space: int, event: KernelEvent) -> None:
        by_space[space].handle(event, tracer)

    def on_copy(space: int, copy: RawCopy) -> None:
        by_space[space].keep_copy(copy)

    tracer = Tracer(_sizes(settings, [watch.pid for watch in watches]), on_event, on_copy)
    return tracer


def _sizes(settings: Settings, pids: Sequence[int]) -> Sizes:
    """Room for all that the targets can have: by vm.max_map_count and their threads now."""
    # Twice: rows of which only parts were unmapped, one after the other, linger.
    mappings = settings.max_mappings or 2 * max_map_count() * len(pids)
    threads = _LEAST_THREADS + 2 * sum(len(task_ids(pid)) for pid in pids)
    return Sizes(
        mappings=mappings,
        threads=threads,
        runs=max(mappings, threads),
        sites=_SITES,
        stack_bytes=settings.stack_bytes,
        copies_per_second=-(-settings.copies_per_second // (os.cpu_count() or 1)),
    )
