# SPDX-License-Identifier: Apache-2.0
"""What ``growth`` watches: the size of a process, what of its ledger stands, and how both change."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import NamedTuple, Optional

from ebpftrace.growth.causes import Group, Names, Place, group
from ebpftrace.growth.model import Change, How, Regular, SiteGrowth, Size, Step, Summary
from ebpftrace.growth.regular import regular
from ebpftrace.growth.standing import Standing, changes, standing
from ebpftrace.jobs.watch import Watch
from ebpftrace.kernel.layout import CallKind
from ebpftrace.kernel.snapshot import BrkMoves, Snapshot
from ebpftrace.kernel.tracer import RawCopy, Tracer
from ebpftrace.model import Clock, EndedBy, Stack, StackSource, TargetInfo, Thread, ThreadId
from ebpftrace.process.maps import read_maps
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.status import read_memory_use
from ebpftrace.process.target import Target
from ebpftrace.process.tasks import read_task
from ebpftrace.stacks.engine import Engine
from ebpftrace.vmas import Vmas

_MOST_BRK_TIMES = 10_000
"""Calls of brk whose time is remembered, the latest ones: enough to tell a period."""

_CALLERS = 2
"""Threads remembered for a site of brk: a second one already says that the site does not tell the thread."""

_READINGS = 4
"""How often size and ledger are read to find both of one moment ..."""
_LONG_READING = 20_000_000
"""... unless that takes so long, in ns: then they differ by what came between, told as unexplained."""

_MOST_SIZES = 1024
"""Sizes kept for the curve of a long window."""


class Moment(NamedTuple):
    """What was read at one moment."""

    size: Optional[Size]
    """None once the target is gone."""
    standing: Standing
    snapshot: Snapshot


class GrowthWatch(Watch):
    """An address space whose size is watched; the main job's books and verdicts are not asked."""

    def __init__(self, target: Target, engine: Engine, program: str = "") -> None:
        super().__init__(target, engine, program)
        self._is_command = bool(program)
        self._begun_with: tuple[Optional[Size], Standing] = (None, standing((), {}, {}, {}))
        self._brk_calls: deque[tuple[int, int]] = deque(maxlen=_MOST_BRK_TIMES)
        self._brk_callers: dict[int, set[int]] = {}
        self._brk_moves: dict[int, BrkMoves] = {}
        self._threads: dict[ThreadId, Thread] = {}

    @property
    def info(self) -> TargetInfo:
        """Who the target is."""
        return self._info

    @property
    def clock(self) -> Clock:
        """Turns times into those of the wall."""
        return self._clock

    def meet(self) -> None:
        """Read who the target is, before anything is attached.  Raises CannotTrace."""
        self._meet(read_maps(self.pid))

    def _has_begun(self, vmas: Vmas, tracer: Tracer) -> None:  # noqa: ARG002
        self._begun_with = self.size(), standing(self._ledger.outstanding([]), {}, {}, {})

    def first_moment(self, tracer: Tracer) -> Moment:
        """What growth counts from: now, or when a COMMAND had just executed its program."""
        now = self.moment(tracer)
        return Moment(*self._begun_with, now.snapshot) if self._is_command else now

    def keep_copy(self, copy: RawCopy) -> None:
        """Take in the stack of a call."""
        if copy.call is CallKind.BRK:
            self._brk_calls.append((copy.site, copy.at))
            callers = self._brk_callers.setdefault(copy.site, set())
            if len(callers) < _CALLERS:
                callers.add(copy.tid)
        super().keep_copy(copy)

    def moment(self, tracer: Tracer) -> Moment:
        """Read size and ledger now."""
        for _ in range(_READINGS):
            at = time.monotonic_ns()
            size = self.size()
            snapshot = tracer.read()[self.space]
            self._brk_moves = tracer.brk_moves_by_site()
            tracer.poll()  # holes and moves that concern the rows just read
            self._settle_doubts()
            if time.monotonic_ns() - at > _LONG_READING or size is None or self._still(size):
                break
        if self._resolver is not None:
            self._stacks.work(self._resolver)
        mappings = self._ledger.outstanding(snapshot.rows)
        return Moment(
            size=size,
            standing=standing(
                mappings,
                snapshot.brk_growth,
                {site: moves.growth for site, moves in self._brk_moves.items()},
                self._brk_callers,
            ),
            snapshot=snapshot,
        )

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
        """Who and where, for changes up to this snapshot; threads of the one before are still known."""
        before, self._threads = self._threads, dict(snapshot.threads)

        def thread(wanted: ThreadId) -> Optional[Thread]:
            known = self._threads.get(wanted) or before.get(wanted)
            return self._named_now(known) if known is not None and known.alive else known

        return Names(thread, self.place, self._stack)

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

    def _stack(self, place: int) -> Stack:
        return self._stacks.stack(place)

    def _still(self, size: Size) -> bool:
        """The address space is as large as it was: size and ledger were read of one moment."""
        now = self.size()
        return now is None or now.virt == size.virt

    def _named_now(self, thread: Thread) -> Thread:
        """A thread that lives may have given itself a name since we saw it."""
        try:
            task = read_task(thread.tgid, thread.id.tid)
        except ProcessGone:
            return thread
        return replace(thread, name=task.name)


class Record:
    """What the window brought so far."""

    def __init__(self, watch: GrowthWatch, first: Moment) -> None:
        if first.size is None:
            raise ProcessGone(watch.pid)
        self._watch = watch
        self._first = first.standing
        self._first_size = self._looked_size = self.size = first.size
        self._last = first
        self._trail = Trail(first.size.virt)
        watch.names(first.snapshot)

    def glance(self, size: Optional[Size]) -> Step:
        """Take in the end of an interval of which only the size was read, and return the interval."""
        before = self.size
        # Of a target that is gone the last size stands: nothing is known of its end.
        self.size = size or before._replace(at=time.monotonic_ns())
        self._trail.add(self.size.virt)
        return Step(before, self.size, None, self._looked_size)

    def look(self, now: Moment) -> Step:
        """Take in the end of an interval, and return the interval."""
        step = self.glance(now.size)
        groups = self._groups(self._last.standing, now)
        self._last = now
        self._looked_size = self.size
        return replace(step, causes=tuple(one.cause for one in groups))

    def summary(self, ended_by: EndedBy) -> Summary:
        """Sum up."""
        groups = self._groups(self._first, self._last)
        sites = [SiteGrowth(one.cause, self._regular(one)) for one in groups]
        snapshot = self._last.snapshot
        return Summary(
            target=self._watch.info,
            clock=self._watch.clock,
            ended_by=ended_by,
            whole=Step(self._first_size, self.size, tuple(one.cause for one in groups), self._first_size),
            sites=tuple(sorted(sites, key=lambda site: site.regular is None)),
            calls=snapshot.calls,
            losses=snapshot.losses,
            sizes=tuple(self._trail.sizes),
            notes=self._watch.notes(snapshot),
        )

    def _groups(self, before: Standing, now: Moment) -> list[Group]:
        return group(changes(before, now.standing), self._watch.names(now.snapshot))

    def _regular(self, one: Group) -> Optional[Regular]:
        if one.cause.how is How.BRK:
            times = self._watch.brk_times({change.site for change in one.changes})
        elif one.cause.how is How.MMAP:
            times = [change.made_at for change in one.changes if change.made_at is not None]
        else:
            return None
        return regular(times, one.cause.size, self._first_size.at, self.size.at)


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
        if len(self.sizes) > _MOST_SIZES:
            self.sizes = self.sizes[::2]
            self._every *= 2
