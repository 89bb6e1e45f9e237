# SPDX-License-Identifier: Apache-2.0
"""The main job, told once: hold the targets, attach, watch, detach, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional, Protocol, Union

from ebpftrace.defaults import COPIES_PER_SECOND, STACK_BYTES
from ebpftrace.jobs.command import hold_targets
from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.jobs.searching import MemorySearcher, Searcher, no_searcher
from ebpftrace.jobs.tracing import (
    Cost,
    begin_loading,
    collector_off,
    follow,
    open_tracer,
)
from ebpftrace.jobs.waiting import readable
from ebpftrace.kernel.cost import measured_runs
from ebpftrace.kernel.layout import Follow
from ebpftrace.model import CommandEnd, EndedBy, Processes, Report, Standing, TracerCost
from ebpftrace.process.sharing import one_of_each_space
from ebpftrace.process.target import Gone, Target

if TYPE_CHECKING:
    from ebpftrace.jobs.leak_watch import LeakWatch
    from ebpftrace.kernel.tracer import Tracer


_INTERVAL_SEARCH_SECONDS = 0.3
"""CPU time that the search for a report of --interval may take."""


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
    """Search the memory of the target for who can still free what exited threads left."""
    search_limit: Optional[int] = None
    """Bytes to search at most; None: all."""
    threads_only: bool = False
    """Trace the creation and end of threads alone, and no system call: only leaks of stacks are seen."""
    follow_forks: Optional[bool] = None
    """Trace child processes too; None: those of a COMMAND."""
    measure_cost: bool = False
    """Have the kernel measure how long our programs run, which makes each run a little longer."""
    debuginfod: bool = False
    """Ask its servers for debug information that is not on this host."""


class Observer(Protocol):
    """Who is told how the session goes."""

    def attached(self, watches: Sequence[LeakWatch]) -> None:
        """All probes are live and the baselines are read; a COMMAND is about to start."""

    def standing(self, standing: Standing) -> None:
        """Who had exited and was not joined in a process when its trace began; right after ``attached``."""

    def searching(self, part: float) -> None:
        """The memory of a target is searched: the part that is done, from 0 to 1."""

    def command_ended(self, end: CommandEnd) -> None:
        """The trace is over: what became of COMMAND."""

    def progress(self, watches: Sequence[LeakWatch], tracer: Tracer, seconds_left: Optional[float]) -> None:
        """Some time has passed."""

    def report(self, report: Report, watch: LeakWatch) -> None:
        """A report is made: one for each address space at its end, and at each interval."""

    def followed(self, processes: Processes) -> None:
        """All reports are made; so many processes were followed."""


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
        interrupts = held.enter_context(Interrupts())
        if settings.measure_cost:
            held.enter_context(measured_runs())
        # The programs are detached before the target is searched, so that nobody pays for them meanwhile.
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
                )
            )
        # Not at the top: these (and what reads the kernel's tables) take as long to import as half a
        # compilation, which goes on meanwhile.
        from ebpftrace.jobs.ending import Libcs
        from ebpftrace.jobs.family import Family
        from ebpftrace.jobs.leak_watch import LeakWatch
        from ebpftrace.stacks.engine import Engine

        search, quick_search = _searchers(settings, observer)
        libcs = Libcs()
        engine = held.enter_context(Engine(debuginfod=settings.debuginfod))
        program = command.program if command else ""

        def make_watch(target: Union[Target, Gone], program: str = "") -> LeakWatch:
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
                    watch.look()
            if not is_traced:
                # Who exited this very moment may still be joined: a second look tells.
                readable([interrupts.fileno()], settings.min_age / 1e9)
                with collector_off():
                    for watch in watches:
                        observer.report(watch.verdict(search), watch)
                return
            with collector_off():
                for watch in watches:
                    watch.meet_threads()

        def judge_child(watch: LeakWatch, ended_by: EndedBy) -> None:
            with collector_off():
                tell(watch.report(tracer, ended_by, search), watch, cost.now())

        family = Family(make_watch, judge_child)
        tracer = attached.enter_context(open_tracer(watches, loading, family))
        tracer.follow(len(watches))
        for watch in watches:
            watch.follows_exec = True
        with collector_off():
            libcs.meet_own(tracer)
            for watch in watches:
                if command:
                    watch.attach_at_exec(tracer)
                else:
                    watch.attach(tracer)
                    family.met(watch)
            cost = Cost(engine, tracer if settings.measure_cost else None)
            began = time.monotonic()
            observer.attached(watches)
            if command:
                command.go()
            else:
                for watch in watches:
                    observer.standing(watch.standing_before())

        def tell(report: Report, watch: LeakWatch, used: TracerCost) -> None:
            if command and watch.pid == command.pid:
                has_ended = watch.ended_by is EndedBy.TARGET_EXIT
                report = replace(report, command=command.end(has_ended=has_ended))
            observer.report(replace(report, cost=used), watch)

        def due(living: Sequence[LeakWatch]) -> None:
            for watch in living:
                with collector_off():
                    tell(watch.report(tracer, EndedBy.INTERVAL, quick_search), watch, cost.now())

        def progress(seconds_left: Optional[float]) -> None:
            observer.progress(watches, tracer, seconds_left)

        left = settings.duration
        if left is not None and not command:
            # What is said of the threads that stand already takes its time where there are many.
            left = max(0.0, left - (time.monotonic() - began))
        ended_by = follow(left, settings.interval, watches, tracer, interrupts, progress, due, family)
        family.finish(ended_by, tracer)
        with collector_off():
            captured = [watch.capture(tracer, watch.ended_by or ended_by) for watch in watches]
            processes = family.processes(tracer)
            traced = cost.now()
            attached.close()
            while watches:
                watch = watches.pop(0)
                report = watch.judge(captured.pop(0), search)
                cpu_seconds = cost.cpu_seconds - report.searched.cpu_seconds
                tell(report, watch, replace(traced, cpu_seconds=cpu_seconds))
            observer.followed(processes)


def _searchers(settings: Settings, observer: Observer) -> tuple[Searcher, Searcher]:
    """For the report at the end, and for those of --interval, which must not hold up the trace."""
    if not settings.search:
        return no_searcher, no_searcher
    whole = MemorySearcher(limit=settings.search_limit, progress=observer.searching)
    return whole, MemorySearcher(limit=settings.search_limit, cpu_seconds=_INTERVAL_SEARCH_SECONDS)
