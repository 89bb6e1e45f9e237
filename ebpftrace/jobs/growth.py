# SPDX-License-Identifier: Apache-2.0
"""Runs ``growth``: attach, say at each interval how each process grew and by what, sum up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional, Protocol

from ebpftrace.errors import CannotTrace
from ebpftrace.jobs.command import hold_targets
from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.jobs.tracing import Cost, begin_loading, collector_off, follow, open_tracer
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.sharing import one_of_each_space

if TYPE_CHECKING:
    from ebpftrace.growth.model import Size, Step, Summary
    from ebpftrace.jobs.growth_watch import GrowthWatch, Record
    from ebpftrace.kernel.tracer import Tracer
    from ebpftrace.model import Clock, CommandEnd, TargetInfo

_SHARE = 0.05
"""Looking for causes may use at most this share of a core, however many mappings there are."""


@dataclass(frozen=True)
class Settings:
    """What to watch, for how long, how often."""

    interval: float
    """Seconds."""
    duration: Optional[float]
    """Seconds; None: until interrupted, or until the end of all targets."""
    pids: Sequence[int] = ()
    command: Sequence[str] = ()
    """Program and arguments to start and watch instead of running processes."""
    debuginfod: bool = False
    """Ask its servers for debug information that is not on this host."""


class Observer(Protocol):
    """Is given what becomes known, process by process."""

    def attached(self) -> None:
        """All probes are live; a COMMAND is about to start."""

    def began(self, target: TargetInfo, clock: Clock, size: Size) -> None:
        """A process is watched from now on; the size is the first one."""

    def step(self, target: TargetInfo, clock: Clock, step: Step) -> None:
        """One interval of one process is over."""

    def summary(self, summary: Summary) -> None:
        """The window is over; once for each process."""

    def command_ended(self, end: CommandEnd) -> None:
        """The trace is over: what became of COMMAND."""


def run(settings: Settings, observer: Observer) -> None:
    """Watch until the duration, a signal, or the end of all targets.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    with ExitStack() as held:
        command, targets = hold_targets(held, settings.pids, settings.command, observer.command_ended)
        pids = [target.pid for target in targets]
        sharers = one_of_each_space(pids)
        interrupts = held.enter_context(Interrupts())
        loading = held.enter_context(begin_loading(pids))
        # Not at the top: see ``jobs.mmap_leaks.run``.
        from ebpftrace.jobs.growth_watch import GrowthWatch
        from ebpftrace.stacks.engine import Engine

        engine = held.enter_context(Engine(debuginfod=settings.debuginfod))
        program = command.program if command else ""
        watches = [
            held.enter_context(GrowthWatch(target, engine, program))
            for target in targets
            if target.pid in sharers
        ]
        for watch in watches:
            for pid in sharers[watch.pid]:
                watch.note(f"process {pid} shares this address space: its calls are included here")
            if not command:
                watch.meet()
                watch.meet_threads()
        tracer = held.enter_context(open_tracer(watches, loading))
        with collector_off():
            for watch in watches:
                if command:
                    watch.attach_at_exec(tracer)
                else:
                    watch.attach(tracer)
        records = _Records(watches, tracer, Cost(engine), observer)
        if command:
            observer.attached()
            command.go()
        records.begin()
        if not command:
            # Not sooner: what the target does from here on counts.
            observer.attached()
        ended_by = follow(
            settings.duration,
            settings.interval,
            watches,
            tracer,
            interrupts,
            lambda _: records.begin(),
            records.due,
        )
        records.begin()
        records.look(watches)
        summaries = [
            replace(record.summary(watch.ended_by or ended_by), cost=records.cost.now())
            for watch, record in records.begun()
        ]
        if not summaries and not command:
            raise ProcessGone(pids[0])
        if not summaries:
            raise CannotTrace(
                "COMMAND ended before its size could be read",
                "growth is for programs that run for some seconds",
            )
        for summary in summaries:
            observer.summary(summary)


class _Records:
    """What the window brought so far, of each process; a COMMAND has a record once it has begun."""

    def __init__(
        self, watches: Sequence[GrowthWatch], tracer: Tracer, cost: Cost, observer: Observer
    ) -> None:
        self.cost = cost
        self._watches = watches
        self._tracer = tracer
        self._observer = observer
        self._records: dict[int, Record] = {}
        """By ``Watch.serial``."""
        self._look_again_at = 0.0
        """In seconds of CLOCK_MONOTONIC."""

    def begin(self) -> None:
        """Make the records of processes that have begun."""
        from ebpftrace.jobs.growth_watch import Record

        for watch in self._watches:
            if watch.begun and watch.serial not in self._records:
                with collector_off():
                    first = watch.first_moment(self._tracer)
                if first.size is not None:
                    record = self._records[watch.serial] = Record(watch, first)
                    self._observer.began(watch.info, watch.clock, record.size)

    def begun(self) -> list[tuple[GrowthWatch, Record]]:
        """All processes with their records."""
        return [
            (watch, self._records[watch.serial]) for watch in self._watches if watch.serial in self._records
        ]

    def due(self, living: Sequence[GrowthWatch]) -> None:
        """Take in the end of an interval: the causes too, unless looking for them took long."""
        if time.monotonic() < self._look_again_at:
            for watch, record in self._of(living):
                self._observer.step(watch.info, watch.clock, record.glance(watch.size()))
            return
        before = self.cost.now().cpu_seconds
        self.look(living)
        # CPU time: a hiccup of the machine would hide the causes for twenty times as long.
        self._look_again_at = time.monotonic() + (self.cost.now().cpu_seconds - before) / _SHARE

    def look(self, watches: Sequence[GrowthWatch]) -> None:
        """Take in the end of an interval with its causes."""
        for watch, record in self._of(watches):
            with collector_off():
                step = record.look(watch.moment(self._tracer))
            self._observer.step(watch.info, watch.clock, step)

    def _of(self, watches: Sequence[GrowthWatch]) -> list[tuple[GrowthWatch, Record]]:
        return [(watch, record) for watch, record in self.begun() if watch in watches]
