# SPDX-License-Identifier: Apache-2.0
"""The address space of ``growth``: its size, its outstanding mappings, and how both change."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

from ebpftrace.capture.layout import CallKind
from ebpftrace.capture.rows import Rows
from ebpftrace.capture.snapshot import BrkMoves, Snapshot
from ebpftrace.capture.tracer import Tracer
from ebpftrace.ledger.verify import as_shown, is_sized_by_kernel, unsized_starts, without_ended
from ebpftrace.model import (
    Calls,
    Clock,
    EndedBy,
    Losses,
    Mapping,
    Stack,
    StackSource,
    TargetInfo,
    Thread,
    ThreadId,
)
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.status import read_memory_use
from ebpftrace.procfs.target import ExitedTarget, Target
from ebpftrace.procfs.tasks import read_task
from ebpftrace.sessions.watch import Watch
from ebpftrace.size_changes.causes import Group, Names, Place, group, regular
from ebpftrace.size_changes.model import MAKING, Change, How, Regular, SiteGrowth, Size, Step, Summary
from ebpftrace.size_changes.outstanding import OutstandingNow, changes, outstanding_now
from ebpftrace.units import PAGE
from ebpftrace.unwind.copies import StackCopy
from ebpftrace.unwind.engine import Engine
from ebpftrace.vmas import Vmas

if TYPE_CHECKING:
    from ebpftrace.sessions.resident import ResidentWatch

_MAX_BRK_TIMES = 10_000
"""How many of the latest brk calls have their times stored: enough to find a period."""

_CALLERS = 2
"""Threads stored for a site of brk: with a second one, the site does not identify the thread."""

_READINGS = 4
"""Most readings of size and ledger until both are of one moment."""
_LONG_READING = 20_000_000
"""ns; a reading that takes longer is not repeated, and its differences are reported as unexplained."""

_SETTLED_READINGS = 2
"""After so many readings without a call between them, the last result is reused."""


_MAX_SIZES = 1024
"""Sizes kept for the curve of a long window."""


class _Begin(NamedTuple):
    """The reading taken after COMMAND executed its program; on a busy machine it may have run for a while."""

    size: Optional[Size]
    at: int
    """When it had that size, in ns of CLOCK_MONOTONIC."""
    rows: Rows
    brk_by_thread: dict[ThreadId, int]
    brk_by_site: dict[int, int]


class Moment(NamedTuple):
    """Values that were read at one moment."""

    size: Optional[Size]
    """None once the target is gone."""
    outstanding_now: OutstandingNow
    snapshot: Snapshot
    stacks: int = 0
    """The number of stacks that had come, and were not unwound yet."""


class GrowthWatch(Watch):
    """Watches the size of an address space; it reads no thread lists and gives no verdicts."""

    def __init__(self, target: Union[Target, ExitedTarget], engine: Engine, program: str = "") -> None:
        super().__init__(target, engine, program)
        self._is_command = bool(program)
        self._stood = outstanding_now((), {}, {}, {})
        """The outstanding mappings as last computed."""
        self._calls: Optional[tuple[Calls, Losses, int]] = None
        """The calls, losses and pending events of the last reading."""
        self._shown: Optional[Vmas] = None
        """/proc as last read for mappings whose size or end no call tells; None while there are none."""
        self._segments: frozenset[int] = frozenset()
        """Where memory of shmat and io_setup begins that was mapped before the tracer attached."""
        self._unchanged = 0
        """Readings since then with the same calls, losses and events."""
        self._begin: Optional[_Begin] = None
        self._brk_calls: deque[tuple[int, int]] = deque(maxlen=_MAX_BRK_TIMES)
        self._brk_callers: dict[int, set[int]] = {}
        self._brk_moves: dict[int, BrkMoves] = {}
        self._threads: dict[ThreadId, Thread] = {}

    @property
    def info(self) -> TargetInfo:
        """The target process."""
        return self._info

    @property
    def clock(self) -> Clock:
        """Turns times into those of the wall."""
        return self._clock

    def preload(self) -> None:
        """Read who the target is, before anything is attached.  Raises CannotTrace."""
        self._read_target(read_maps(self.pid))

    def _has_begun(self, vmas: Vmas, tracer: Tracer) -> None:
        self._segments = unsized_starts(vmas)
        if not self._is_command:
            return
        for _ in range(_READINGS):
            size, at = self.size(), time.monotonic_ns()
            if size is None or self._still(size):
                break
        snapshot = tracer.read()[self.space]
        brk = {site: moves.growth for site, moves in tracer.brk_moves_by_site().items()}
        self._begin = _Begin(size, at, snapshot.rows, snapshot.brk_growth, brk)

    def first_moment(self, tracer: Tracer) -> Moment:
        """The reading that growth is counted from: now, or when a COMMAND had just executed its program."""
        now = self.moment(tracer)
        begin = self._begin
        if begin is None:
            return now
        # Only now, as the events up to that moment have come.
        mappings = self._ledger.outstanding(begin.rows, until=begin.at)
        stood = outstanding_now(mappings, begin.brk_by_thread, begin.brk_by_site, {})
        return Moment(begin.size, stood, now.snapshot)

    def keep_copy(self, call: CallKind, copy: StackCopy) -> None:
        """Take in the stack of a call."""
        if call is CallKind.BRK:
            self._brk_calls.append((copy.signature, copy.at))
            callers = self._brk_callers.setdefault(copy.signature, set())
            if len(callers) < _CALLERS:
                callers.add(copy.tid)
        super().keep_copy(call, copy)

    def unwind(self, most: int) -> None:
        """Unwind the oldest ``most`` of the stacks that have come."""
        if self._resolver is not None:
            self._stacks.work(self._resolver, most)

    def moment(self, tracer: Tracer) -> Moment:
        """Read size and ledger now."""
        for _ in range(_READINGS):
            at = time.monotonic_ns()
            size = self.size()
            snapshot = tracer.read()[self.space]
            self._brk_moves = tracer.brk_moves_by_site()
            tracer.poll()  # unmaps and moves of the rows just read
            self._resolve_doubtful()
            if time.monotonic_ns() - at > _LONG_READING or size is None or self._still(size):
                break
        return Moment(size, self._sightings(snapshot), snapshot, self._stacks.waiting)

    def _sightings(self, snapshot: Snapshot) -> OutstandingNow:
        """Return the outstanding mappings; if there was no call since, those computed before.

        A call may be counted before its row is in the table, so they are computed once more before they are
        reused. Those with a mapping that may grow without a call are not reused.
        """
        calls = snapshot.calls, snapshot.losses, self._ledger.pending
        self._unchanged = self._unchanged + 1 if calls == self._calls else 0
        self._calls = calls
        if self._unchanged < _SETTLED_READINGS or self._shown is not None:
            self._stood = outstanding_now(
                self._sized(self._ledger.outstanding(snapshot.rows)),
                snapshot.brk_growth,
                {site: moves.growth for site, moves in self._brk_moves.items()},
                self._brk_callers,
            )
        return self._stood

    def _sized(self, mappings: list[Mapping]) -> list[Mapping]:
        """Return the mappings as large as the kernel made them; after the end, as they were seen last."""
        if not self._segments and not any(map(is_sized_by_kernel, mappings)):
            self._shown = None
            return mappings
        if self.ended_by is None:
            with suppress(ProcessGone):
                self._shown = read_maps(self.pid)
        if self._shown is None:
            return mappings
        return without_ended(as_shown(mappings, self._shown, PAGE), self._segments, self._shown)

    def size(self) -> Optional[Size]:
        """Size now; None once the target is gone."""
        if self.ended_by is not None:
            return None
        try:
            memory = read_memory_use(self.pid)
        except ProcessGone:
            return None
        return Size(time.monotonic_ns(), memory.virt, memory.rss)

    def names(self, snapshot: Snapshot) -> Names:
        """Threads and call sites of changes up to this snapshot; threads of the previous one are included."""
        before, self._threads = self._threads, dict(snapshot.threads)

        def thread(wanted: ThreadId) -> Optional[Thread]:
            known = self._threads.get(wanted) or before.get(wanted)
            return self._named_now(known) if known is not None and known.alive else known

        return Names(thread, self.place, self.stack)

    def place(self, change: Change) -> Place:
        """The stack of a change."""
        if change.thread is None or change.made_at is None:
            calls = self._brk_moves[change.site].calls if change.site in self._brk_moves else None
            stack, source = self._stacks.origin(change.site, calls=calls)
        else:
            stack, source = self._stacks.origin(change.site, (change.thread.tid, change.made_at))
        return Place(stack, source is StackSource.COPIED)

    def brk_times(self, sites: set[int]) -> list[int]:
        """When these sites (signatures) moved the break, as far as their stacks were copied."""
        return [at for site, at in self._brk_calls if site in sites]

    def fault_stack(self, site: int, tid: int, at: int) -> int:
        """Number of the stack of a page fault, 0 where there is none."""
        return self._stacks.origin(site, (tid, at)).stack

    def stack(self, number: int) -> Stack:
        """The stack of a number."""
        return self._stacks.stack(number)

    def _still(self, size: Size) -> bool:
        """The address space is as large as it was: size and ledger were read of one moment."""
        now = self.size()
        return now is None or now.virt == size.virt

    def _named_now(self, thread: Thread) -> Thread:
        """A live thread may have changed its name since we read it."""
        try:
            task = read_task(thread.tgid, thread.id.tid)
        except ProcessGone:
            return thread
        return replace(thread, name=task.name)


class Record:
    """The totals of the window up to now."""

    def __init__(
        self,
        watch: GrowthWatch,
        first: Moment,
        fault_period: Optional[int] = None,
        from_exec: bool = False,
    ) -> None:
        """``fault_period``: one of so many page faults is sampled; None: none is.

        ``from_exec``: the process is seen from its first instruction on.
        """
        if first.size is None:
            raise ProcessGone(watch.pid)
        self._watch = watch
        self.resident: Optional[ResidentWatch] = None
        """The origin of the resident memory; None if no faults are sampled."""
        if fault_period is not None:
            from ebpftrace.sessions.resident import ResidentWatch

            self.resident = ResidentWatch(watch, fault_period, from_exec=from_exec)
        self._first = first.outstanding_now
        self.first_size = self._looked_size = self.size = first.size
        self._last = first
        self._trail = Trail(first.size.virt)
        watch.names(first.snapshot)

    @property
    def has_changed(self) -> bool:
        """The size is not the first one."""
        return self.size[1:] != self.first_size[1:]

    def glance(self, size: Optional[Size]) -> Step:
        """Take in the end of an interval of which only the size was read, and return the interval."""
        if self.resident is not None:
            self.resident.read()
        return self._next(size)

    def _next(self, size: Optional[Size]) -> Step:
        before = self.size
        # If the target has exited, its last size is used: its size at the end is not known.
        self.size = size or before._replace(at=time.monotonic_ns())
        self._trail.add(self.size.virt)
        return Step(before, self.size, None, self._looked_size)

    def sample(self, now: Moment) -> Step:
        """Take in the end of an interval, and return the interval.

        A process that has ended has no size any more, but its calls up to its end were seen: VIRT is what
        they have made of its last size, RSS the last one.
        """
        groups = self._groups(self._last.outstanding_now, now)
        size = now.size
        if size is None:
            grown = sum(one.cause.size for one in groups)
            size = Size(time.monotonic_ns(), max(0, self._looked_size.virt + grown), self.size.rss)
        step = self._next(size)
        self._last = now
        rss_causes = None
        if self.resident is not None:
            rss_causes = self.resident.causes(self.size.rss - self._looked_size.rss)
        self._looked_size = self.size
        return replace(step, causes=tuple(one.cause for one in groups), rss_causes=rss_causes)

    def summary(self, ended_by: EndedBy, lost_faults: int = 0) -> Summary:
        """Sum up."""
        groups = self._groups(self._first, self._last)
        sites = [SiteGrowth(one.cause, self._regular(one)) for one in groups]
        snapshot = self._last.snapshot
        return Summary(
            target=self._watch.info,
            clock=self._watch.clock,
            ended_by=ended_by,
            whole=Step(self.first_size, self.size, tuple(one.cause for one in groups), self.first_size),
            sites=tuple(sorted(sites, key=lambda site: site.regular is None)),
            calls=snapshot.calls,
            losses=snapshot.losses,
            sizes=tuple(self._trail.sizes),
            notes=self._watch.notes(snapshot),
            resident=self.resident.summary(lost_faults) if self.resident is not None else None,
        )

    def _groups(self, before: OutstandingNow, now: Moment) -> list[Group]:
        return group(changes(before, now.outstanding_now), self._watch.names(now.snapshot))

    def _regular(self, one: Group) -> Optional[Regular]:
        if one.cause.how is How.BRK:
            times = self._watch.brk_times({change.site for change in one.changes})
        elif one.cause.how in MAKING:
            times = [change.made_at for change in one.changes if change.made_at is not None]
        else:
            return None
        return regular(times, one.cause.size, self.first_size.at, self.size.at)


class Trail:
    """Sizes over a window of any length, evenly spaced, in bounded memory."""

    def __init__(self, first: int) -> None:
        self.sizes = [first]
        self._every = 1
        self._skipped = 0

    def add(self, size: int) -> None:
        """Take in the next one."""
        self._skipped += 1
        if self._skipped < self._every:
            return
        self._skipped = 0
        self.sizes.append(size)
        if len(self.sizes) > _MAX_SIZES:
            self.sizes = self.sizes[::2]
            self._every *= 2
