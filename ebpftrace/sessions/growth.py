# SPDX-License-Identifier: Apache-2.0
"""Runs ``growth``: attach, say at each interval how each process grew and by what, sum up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional, Protocol

from ebpftrace.capture.layout import Follow, Probes
from ebpftrace.errors import CannotTrace
from ebpftrace.model import EndedBy
from ebpftrace.own_process import collector_off
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.sharing import one_of_each_space
from ebpftrace.sessions.command import hold_targets
from ebpftrace.sessions.interrupts import Interrupts
from ebpftrace.sessions.tracing import Cost, begin_loading, follow, open_tracer

if TYPE_CHECKING:
    from ebpftrace.capture.faults import Fault, FaultSampler
    from ebpftrace.capture.loader import Loading
    from ebpftrace.capture.tracer import Tracer
    from ebpftrace.model import Clock, CommandEnd, TargetInfo
    from ebpftrace.sessions.family import Family
    from ebpftrace.sessions.growth_watch import GrowthWatch, Moment, Record
    from ebpftrace.size_changes.model import Size, Step, Summary

_SHARE = 0.05
"""Looking for causes may use at most this share of a core, however many mappings there are."""

_SETTLE_NS = 100_000_000
"""Child processes are watched once they have lived for so long: most of those that a build or a shell starts
have ended by then."""

_STARTER_NS = 1_000_000_000
"""A process that executes another program within this time (``env``, a shell) gets no summary."""

_MAX_EARLY = 50_000
"""Page faults kept of a COMMAND until its first size has been read."""

_MAX_ENDED = 100
"""Summaries kept of followed processes that have ended: those that grew most."""


@dataclass(frozen=True)
class Settings:
    """The processes to watch, the duration and the interval."""

    interval: float
    """Seconds."""
    duration: Optional[float]
    """Seconds; None: until interrupted, or until the end of all targets."""
    pids: Sequence[int] = ()
    command: Sequence[str] = ()
    """Program and arguments to start and watch instead of running processes."""
    follow_forks: Optional[bool] = None
    """Watch child processes too; None: those of a COMMAND.  What a process executes is always watched."""
    debuginfod: bool = False
    """Ask its servers for debug information that is not on this host."""
    fault_period: Optional[int] = None
    """Look for what fills memory, by one of so many page faults of each thread; None: don't."""
    needs_faults: bool = False
    """Refuse to trace without them; else a note says why they are missing."""
    probes: Probes = Probes.AUTO


class Observer(Protocol):
    """Is given what becomes known, process by process."""

    def attached(self) -> None:
        """All probes are live; a COMMAND is about to start."""

    def began(self, target: TargetInfo, clock: Clock, size: Size) -> None:
        """A process is watched from now on; the size is the first one."""

    def step(self, target: TargetInfo, clock: Clock, step: Step) -> None:
        """One interval of one process is over."""

    def summary(self, summary: Summary) -> None:
        """The window is over; once for each process, and for each program that it executed."""

    def left_out(self, ended: int, lost: int) -> None:
        """All summaries are made.  So many followed processes have none.

        ``ended``: they ended within an interval, did not grow, or grew less than those that have; ``lost``:
        there was no room for them.
        """

    def command_ended(self, end: CommandEnd) -> None:
        """The trace is over: what became of COMMAND."""


def run(settings: Settings, observer: Observer) -> None:
    """Watch until the duration, a signal, or the end of all targets.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    follows_forks = bool(settings.command) if settings.follow_forks is None else settings.follow_forks
    with ExitStack() as held:
        command, targets = hold_targets(held, settings.pids, settings.command, observer.command_ended)
        pids = [target.pid for target in targets]
        sharers = one_of_each_space(pids)
        loading = held.enter_context(
            begin_loading(
                pids,
                follow=Follow.FORKS if follows_forks else Follow.EXEC,
                settle_ns=_SETTLE_NS,
                brk_stacks=True,
                probes=settings.probes,
            )
        )
        # Not at the top: see ``sessions.mmap_leaks.run``.
        from ebpftrace.sessions.family import Family
        from ebpftrace.sessions.growth_watch import GrowthWatch
        from ebpftrace.unwind.engine import Engine

        engine = held.enter_context(Engine(debuginfod=settings.debuginfod))
        if not command:
            engine.start()  # it is ready when the programs are
        program = command.program if command else ""
        watches = [
            held.enter_context(GrowthWatch(target, engine, program))
            for target in targets
            if target.pid in sharers
        ]
        for watch in watches:
            watch.follows_exec = True
            for pid in sharers[watch.pid]:
                watch.note(f"process {pid} shares this address space: its calls are included here")
            if not command:
                watch.preload()
                watch.preload_threads()

        def child_ended(watch: GrowthWatch, ended_by: EndedBy) -> None:
            records.end(watch, ended_by)

        family = Family(lambda target: GrowthWatch(target, engine), child_ended)
        tracer = held.enter_context(open_tracer(watches, loading, family))
        tracer.follow(len(watches))
        with collector_off():
            for watch in watches:
                if command:
                    watch.attach_at_exec(tracer)
                else:
                    watch.attach(tracer)
                    family.add_traced(watch)
        named = [pid for watch in watches for pid in (watch.pid, *sharers[watch.pid])]
        sampler, note = sample_faults(settings, loading, named, held)
        for watch in watches if note else ():
            watch.note(note)
        records = _Records(
            watches,
            family,
            tracer,
            Cost(engine),
            observer,
            interval=settings.interval,
            is_command=command is not None,
            sampler=sampler,
            fault_period=settings.fault_period if sampler is not None else None,
        )
        # Before this, a signal ends the program: there is nothing to report, and loading takes seconds.
        interrupts = held.enter_context(Interrupts())
        if command:
            observer.attached()
            command.go()
        records.begin()
        if not command:
            if not records.are_any:
                raise ProcessGone(pids[0])
            # Not sooner: what the target does from here on counts.
            observer.attached()
        ended_by = follow(
            settings.duration,
            settings.interval,
            watches,
            tracer,
            interrupts,
            lambda _: None,
            records.due,
            family,
            records.begin,
        )
        records.begin()
        records.read((*watches, *family.living()))
        for watch in watches:
            records.end(watch, ended_by)
        family.finish(ended_by, tracer)
        if not records.summaries:
            raise CannotTrace(
                "COMMAND ended before its size could be read",
                "growth is for programs that run for some seconds",
            )
        for summary in records.summaries:
            observer.summary(summary)
        observer.left_out(records.left_out, family.processes(tracer).lost)


def sample_faults(
    settings: Settings, loading: Loading, pids: Iterable[int], held: ExitStack
) -> tuple[Optional[FaultSampler], str]:
    """Attach to the page faults of these processes; the text is a note for the report, or empty.

    Raises CannotTrace where they can't be had, and the user asked for them.
    """
    if settings.fault_period is None:
        return None, ""
    from ebpftrace.capture.faults import FaultSampler

    with ExitStack() as until_attached:
        try:
            sampler = until_attached.enter_context(FaultSampler(loading, settings.fault_period))
            saw_all = sampler.attach(pids)
        except CannotTrace as error:
            if settings.needs_faults:
                raise
            return None, f"which code fills memory is not known: {error}"
        held.enter_context(until_attached.pop_all())
    return sampler, "" if saw_all else (
        "threads were created faster than they could be listed: some faults are missing"
    )


class _Records:
    """The totals of the window up to now, by process; a COMMAND has an entry once it has begun."""

    def __init__(
        self,
        watches: Sequence[GrowthWatch],
        family: Family[GrowthWatch],
        tracer: Tracer,
        cost: Cost,
        observer: Observer,
        *,
        interval: float,
        is_command: bool,
        sampler: Optional[FaultSampler],
        fault_period: Optional[int],
    ) -> None:
        self._sampler = sampler
        self._early_faults: dict[int, list[Fault]] = {}
        """Of address spaces that have no record yet."""
        self._fault_period = fault_period
        self.summaries: list[Summary] = []
        """Of those that have ended."""
        self.left_out = 0
        """The number of further ones."""
        self._is_command = is_command
        self._interval_ns = interval * 1e9
        self._cost = cost
        self._watches = watches
        self._family = family
        self._tracer = tracer
        self._observer = observer
        self._records: dict[int, Record] = {}
        """By ``Watch.serial``."""
        self._moments: dict[int, Moment] = {}
        """Readings of which the causes are to be looked for; by the same key."""
        self._shown: set[int] = set()
        """The processes that the observer knows; by the same key."""
        self._look_again_at = 0.0
        """In seconds of CLOCK_MONOTONIC."""

    @property
    def are_any(self) -> bool:
        """Whether the first size of any process could be read."""
        return bool(self._records)

    def begin(self) -> None:
        """Make the records of processes that have begun; sum up those that executed another program."""
        self._take_faults()
        for watch in (*self._watches, *self._family.living()):
            # Of one that has executed something else already the size can't be read any more.
            is_there = watch.begun and watch.ended_by is not EndedBy.EXEC
            if is_there and watch.serial not in self._records:
                with collector_off():
                    first = watch.first_moment(self._tracer)
                if first.size is not None:
                    self._make_record(watch, first)
            elif watch.ended_by is EndedBy.EXEC and watch.serial in self._records:
                self.end(watch, EndedBy.EXEC)
        for watch in (*self._watches, *self._family.living()):
            # What has only begun to execute may be a shell that executes another program at once.
            ran = watch in self._watches and not self._is_command
            if self._is_named(watch) and (ran or time.monotonic_ns() - watch.began_at >= _SETTLE_NS):
                self._show(watch)

    def _make_record(self, watch: GrowthWatch, first: Moment) -> None:
        from ebpftrace.sessions.growth_watch import Record

        # What a process executes while it is watched is seen from its first instruction on, as a COMMAND is.
        from_exec = self._is_command if watch in self._watches else self._is_named(watch)
        early = self._early_faults.pop(watch.space, ())
        try:
            record = self._records[watch.serial] = Record(watch, first, self._fault_period, from_exec)
        except ProcessGone:
            return
        if record.resident is not None and from_exec:
            for fault in early:
                record.resident.take(fault)

    def _take_faults(self) -> None:
        if self._sampler is None:
            return
        watches = (*self._watches, *self._family.living())
        records = {watch.space: self._records.get(watch.serial) for watch in watches}
        for fault in self._sampler.poll():
            record = records.get(fault.space)
            if record is not None and record.resident is not None:
                record.resident.take(fault)
            elif record is None and fault.space in records:
                early = self._early_faults.setdefault(fault.space, [])
                if len(early) < _MAX_EARLY:
                    early.append(fault)

    def due(self, living: Sequence[GrowthWatch]) -> None:
        """Take in the end of an interval: the causes too, unless looking for them took long."""
        # Stacks were unwound since: what was a shell then may execute what was meant by now.
        self._tracer.poll()
        self.begin()
        watches = [one for one in (*living, *self._family.living()) if one.serial in self._records]
        if time.monotonic() < self._look_again_at:
            for watch in watches:
                self._step(watch, self._records[watch.serial].glance(watch.size()))
            return
        before = self._cost.now().cpu_seconds
        self.read(watches)
        for watch in watches:
            self._look(watch)
        # CPU time: a hiccup of the machine would hide the causes for twenty times as long.
        self._look_again_at = time.monotonic() + (self._cost.now().cpu_seconds - before) / _SHARE

    def read(self, watches: Sequence[GrowthWatch]) -> None:
        """Read several processes before the stacks of any are unwound.

        While stacks are unwound, new ones come.  If each process were read in its turn, of the last of many
        there would be more stacks than can be unwound in any time.
        """
        for watch in watches:
            if watch.serial in self._records:
                self._moments[watch.serial] = self._read(watch)

    def end(self, watch: GrowthWatch, ended_by: EndedBy) -> None:
        """Sum up one process: it has ended, or the window has."""
        if watch.serial not in self._records:
            self.left_out += not self._is_named(watch)
            return
        if watch.ended_by is EndedBy.EXEC and watch.lived_ns < _STARTER_NS:
            del self._records[watch.serial]
            return
        is_brief = watch.ended_by is not None and watch.lived_ns < self._interval_ns
        if is_brief and watch.serial not in self._shown and not self._is_named(watch):
            del self._records[watch.serial]
            self.left_out += 1
            return
        self._look(watch)
        record = self._records.pop(watch.serial)
        if watch.serial not in self._shown:
            self.left_out += 1
            return
        lost = self._sampler.lost if self._sampler is not None else 0
        self.summaries.append(
            replace(record.summary(watch.ended_by or ended_by, lost), cost=self._cost.now())
        )
        ended = [one for one in self.summaries if one.ended_by in (EndedBy.TARGET_EXIT, EndedBy.EXEC)]
        if len(ended) > _MAX_ENDED:
            self.summaries.remove(min(ended, key=lambda one: one.whole.virt))
            self.left_out += 1

    def _is_named(self, watch: GrowthWatch) -> bool:
        """It is a process that the user named, not a child."""
        return any(watch.pid == one.pid for one in self._watches)

    def _show(self, watch: GrowthWatch) -> None:
        """Say how large a process was when it began."""
        record = self._records.get(watch.serial)
        if record is not None and watch.serial not in self._shown:
            self._shown.add(watch.serial)
            self._observer.began(watch.info, watch.clock, record.first_size)

    def _look(self, watch: GrowthWatch) -> None:
        """Take in the end of an interval with its causes."""
        moment = self._moments.pop(watch.serial, None) or self._read(watch)
        with collector_off():
            watch.unwind(moment.stacks)
            step = self._records[watch.serial].sample(moment)
        self._step(watch, step)

    def _read(self, watch: GrowthWatch) -> Moment:
        with collector_off():
            self._take_faults()
            record = self._records[watch.serial]
            if record.resident is not None:
                # At once: unwinding takes long, and what is filled meanwhile had no fault that was taken in.
                record.resident.read(at_any_cost=True)
            return watch.moment(self._tracer)

    def _step(self, watch: GrowthWatch, step: Step) -> None:
        """Tell of an interval.  A child is shown once it has changed: a shell only waits for what it runs."""
        record = self._records[watch.serial]
        if self._is_named(watch) or record.has_changed:
            self._show(watch)
        if watch.serial in self._shown:
            self._observer.step(watch.info, watch.clock, step)
