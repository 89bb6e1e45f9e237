# SPDX-License-Identifier: Apache-2.0
"""Runs ``mmap-leaks``: open the targets, attach, trace, detach, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional, Protocol, Union

from ebpftrace.capture.layout import Follow, Probes
from ebpftrace.capture.sources import Background
from ebpftrace.capture.stats import measured_runs
from ebpftrace.defaults import COPIES_PER_SECOND, STACK_BYTES
from ebpftrace.errors import CannotTrace
from ebpftrace.model import CommandEnd, EndedBy, Processes, Report, TracerCost, UnjoinedBefore
from ebpftrace.own_process import collector_off
from ebpftrace.procfs.maps import count_areas
from ebpftrace.procfs.sharing import one_of_each_space
from ebpftrace.procfs.target import ExitedTarget, Target
from ebpftrace.sessions.command import hold_targets
from ebpftrace.sessions.interrupts import Interrupts
from ebpftrace.sessions.searching import MemorySearcher, Searcher, no_searcher
from ebpftrace.sessions.tracing import (
    Cost,
    begin_loading,
    follow,
    open_tracer,
)

if TYPE_CHECKING:
    from ebpftrace.capture.tracer import Tracer
    from ebpftrace.sessions.leak_watch import LeakWatch


_INTERVAL_SEARCH_SECONDS = 0.3
"""CPU time that the search for a report of --interval may take."""


_MANY_AREAS = 20_000
"""A report on so many areas takes two seconds of CPU or more."""


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
    stack_bytes: int = STACK_BYTES
    copies_per_second: int = COPIES_PER_SECOND
    search: bool = True
    """Search the memory of the target for references to what exited threads left."""
    search_limit: Optional[int] = None
    """Bytes to search at most; None: all."""
    threads_only: bool = False
    """Trace only the creation and end of threads, and no system call: only leaked stacks are found."""
    probes: Probes = Probes.AUTO
    follow_forks: Optional[bool] = None
    """Trace child processes too; None: those of a COMMAND."""
    measure_cost: bool = False
    """Let the kernel measure the run time of our programs, which adds a little to each run."""
    debuginfod: bool = False
    """Ask debuginfod servers for debug information that is not on this host."""


class Observer(Protocol):
    """Receives the reports and the progress of the session."""

    def attached(self, watches: Sequence[LeakWatch]) -> None:
        """All probes are live and the baselines are read; a COMMAND is about to start."""

    def unjoined_before(self, unjoined_before: UnjoinedBefore) -> None:
        """Threads of a process had exited unjoined when its trace began; called after ``attached``."""

    def searching(self, part: float) -> None:
        """The memory of a target is being searched; ``part`` is done, from 0 to 1."""

    def command_ended(self, end: CommandEnd) -> None:
        """The trace is over, and COMMAND is in this state."""

    def progress(self, watches: Sequence[LeakWatch], tracer: Tracer, seconds_left: Optional[float]) -> None:
        """Some time has passed."""

    def reporting(self, areas: int) -> None:
        """The trace is over, and the reports of processes with ``areas`` VMAs will take some seconds."""

    def report(self, report: Report, watch: LeakWatch) -> None:
        """A report was made: one for each address space at its end, and at each interval."""

    def followed(self, processes: Processes) -> None:
        """All reports were made; these processes were followed."""


def run(settings: Settings, observer: Observer) -> None:
    """Trace and report.  Ended by the duration, a signal, or the end of all targets.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    is_traced = bool(settings.command) or settings.duration != 0
    follows_forks = bool(settings.command) if settings.follow_forks is None else settings.follow_forks
    with ExitStack() as held:
        command, targets = hold_targets(held, settings.pids, settings.command, observer.command_ended)
        pids = [target.pid for target in targets]
        sharers = one_of_each_space(pids)
        if settings.measure_cost:
            held.enter_context(measured_runs())
        attached = held.enter_context(ExitStack())
        if is_traced:
            loading = attached.enter_context(
                begin_loading(
                    pids,
                    settings.max_mappings,
                    settings.stack_bytes,
                    settings.copies_per_second,
                    Follow.FORKS if follows_forks else Follow.EXEC,
                    settings.threads_only,
                    probes=settings.probes,
                )
            )
        # Not at the top: these imports take half as long as the compilation, which runs meanwhile.
        from ebpftrace.sessions.ending import Libcs
        from ebpftrace.sessions.family import Family
        from ebpftrace.sessions.leak_watch import LeakWatch
        from ebpftrace.unwind.engine import Engine

        search, quick_search = _searchers(settings, observer)
        libcs = Libcs()
        engine = held.enter_context(Engine(debuginfod=settings.debuginfod))
        if not command:
            engine.start()  # it is ready when the programs are
        program = command.program if command else ""

        def make_watch(target: Union[Target, ExitedTarget], program: str = "") -> LeakWatch:
            return LeakWatch(
                target,
                engine,
                libcs,
                settings.min_age,
                settings.stack_bytes > 0,
                program,
                threads_only=settings.threads_only,
            )

        watches = [
            held.enter_context(make_watch(target, program)) for target in targets if target.pid in sharers
        ]
        for watch in watches:
            for pid in sharers[watch.pid]:
                watch.note(f"process {pid} shares this address space: its calls and mappings are included")
        if not command:
            with collector_off():
                for watch in watches:
                    watch.read_beforehand(confirm=is_traced)
            if not is_traced:
                # Threads that have exited just now may be joined in the next moment: read the lists twice.
                time.sleep(settings.min_age / 1e9)
                with collector_off():
                    for watch in watches:
                        observer.report(watch.verdict(search), watch)
                return
            with collector_off():
                for watch in watches:
                    watch.preload_threads()

        def judge_child(watch: LeakWatch, ended_by: EndedBy) -> None:
            with collector_off():
                show(watch.report(tracer, ended_by, search), watch, cost.now())

        family = Family(make_watch, judge_child)
        tracer = attached.enter_context(open_tracer(watches, loading, family))
        tracer.follow(len(watches))
        for watch in watches:
            watch.follows_exec = True
        with collector_off():
            libcs.preload_own(tracer)
            for watch in watches:
                if command:
                    watch.attach_at_exec(tracer)
                else:
                    watch.attach(tracer)
                    family.add_traced(watch)
            cost = Cost(engine, tracer if settings.measure_cost else None)
            detaching = Background[None]()
            began = time.monotonic()
            # Before this, a signal ends the program: there is nothing to report, and loading takes seconds.
            interrupts = held.enter_context(Interrupts())
            observer.attached(watches)
            if command:
                command.go()
            else:
                for watch in watches:
                    observer.unjoined_before(watch.unjoined_before())

        def show(report: Report, watch: LeakWatch, used: TracerCost) -> None:
            if command and watch.pid == command.pid:
                has_ended = watch.ended_by is EndedBy.TARGET_EXIT
                report = replace(report, command=command.end(has_ended=has_ended))
            observer.report(replace(report, cost=used), watch)

        def due(living: Sequence[LeakWatch]) -> None:
            for watch in living:
                with collector_off():
                    show(watch.report(tracer, EndedBy.INTERVAL, quick_search), watch, cost.now())

        def progress(seconds_left: Optional[float]) -> None:
            observer.progress(watches, tracer, seconds_left)

        left = settings.duration
        if left is not None and not command:
            # With many unjoined threads, the calls above have taken a part of the duration.
            left = max(0.0, left - (time.monotonic() - began))
        ended_by = follow(left, settings.interval, watches, tracer, interrupts, progress, due, family)
        areas = _areas(watches)
        if areas >= _MANY_AREAS:
            interrupts.release()
            observer.reporting(areas)
        family.finish(ended_by, tracer)
        with collector_off():
            captured = [watch.capture(tracer, watch.ended_by or ended_by) for watch in watches]
            processes = family.processes(tracer)
            traced = cost.now()
            # The kernel waits some 20 ms for each program that is detached: the report is made meanwhile.
            detaching.begin(attached.pop_all().close)
            held.callback(detaching.wait)
            while watches:
                watch = watches.pop(0)
                report = watch.judge(captured.pop(0), search)
                cpu_seconds = cost.cpu_seconds - report.searched.cpu_seconds
                show(report, watch, replace(traced, cpu_seconds=cpu_seconds))
            observer.followed(processes)


def _areas(watches: Sequence[LeakWatch]) -> int:
    """Return the number of VMAs of the live processes."""
    areas = 0
    for watch in watches:
        with suppress(CannotTrace):
            areas += count_areas(watch.pid) if watch.ended_by is None else 0
    return areas


def _searchers(settings: Settings, observer: Observer) -> tuple[Searcher, Searcher]:
    """Return the searchers for the report at the end, and for those of --interval, which must be quick."""
    if not settings.search:
        return no_searcher, no_searcher
    whole = MemorySearcher(limit=settings.search_limit, progress=observer.searching)
    return whole, MemorySearcher(limit=settings.search_limit, cpu_seconds=_INTERVAL_SEARCH_SECONDS)
