# SPDX-License-Identifier: Apache-2.0
"""What the sessions on the ledger share: loading with suitable sizes, the event loop, the cost."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Optional, TypeVar

from ebpftrace.capture.layout import Follow, Probes
from ebpftrace.capture.loader import Loading
from ebpftrace.capture.sizing import Needs
from ebpftrace.defaults import COPIES_PER_SECOND, STACK_BYTES
from ebpftrace.model import EndedBy, TracerCost
from ebpftrace.procfs.access import task_ids
from ebpftrace.procfs.maps import count_areas
from ebpftrace.procfs.status import max_map_count, pid_max
from ebpftrace.procfs.target import Target
from ebpftrace.sessions.interrupts import Interrupts, readable

if TYPE_CHECKING:
    from ebpftrace.capture.kernel_events import KernelEvent
    from ebpftrace.capture.layout import CallKind
    from ebpftrace.capture.tracer import Tracer
    from ebpftrace.sessions.family import Family
    from ebpftrace.sessions.watch import Watch
    from ebpftrace.unwind.copies import StackCopy
    from ebpftrace.unwind.engine import Engine

_IDLE_SECONDS = 1.0
"""Longest time that a few events wait; the BPF programs wake us for many and for urgent ones."""
_POLL_SECONDS = 0.1
"""Least time between two polls."""

AnyWatch = TypeVar("AnyWatch", bound="Watch")


def begin_loading(
    pids: Sequence[int],
    max_mappings: Optional[int] = None,
    stack_bytes: int = STACK_BYTES,
    copies_per_second: int = COPIES_PER_SECOND,
    follow: Follow = Follow.NOTHING,
    threads_only: bool = False,
    settle_ns: int = 0,
    brk_stacks: bool = False,
    probes: Probes = Probes.AUTO,
) -> Loading:
    """Begin to load the programs, with tables sized for what these processes have and may get.

    ``max_mappings``: rows of the ledger; None: by the number of mappings.  ``threads_only``: no program is
    attached to system calls, so there are no rows.  ``settle_ns`` and ``brk_stacks`` as in
    ``sizing.Needs``.  Raises CannotTrace.
    """
    needs = Needs(
        mapped=[count_areas(pid) for pid in pids],
        tasks=sum(len(task_ids(pid)) for pid in pids),
        most_mapped=max_map_count(),
        most_tasks=pid_max(),
        max_mappings=max_mappings,
        stack_bytes=stack_bytes,
        copies_per_second=-(-copies_per_second // (os.cpu_count() or 1)),
        follow=follow,
        threads_only=threads_only,
        settle_ns=settle_ns,
        brk_stacks=brk_stacks,
        probes=probes,
    )
    return Loading(needs)


def open_tracer(
    watches: Sequence[Watch], loading: Loading, family: Optional[Family[AnyWatch]] = None
) -> Tracer:
    """Wait until the programs are attached; the watches get their events.  Raises CannotTrace.

    ``family`` gets these events, too, and those of other processes.
    """
    from ebpftrace.capture.tracer import Tracer  # not at the top: see ``sessions.mmap_leaks.run``

    by_space = dict(enumerate(watches))

    def on_event(space: int, event: KernelEvent) -> None:
        watch = by_space.get(space)
        if family is not None:
            family.take(space, event, watch, tracer)
        if watch is not None:
            watch.handle(event, tracer)

    def on_copy(space: int, call: CallKind, copy: StackCopy) -> None:
        watch = by_space.get(space)
        if watch is not None:
            watch.keep_copy(call, copy)
        elif family is not None:
            family.keep_copy(space, call, copy)

    tracer = Tracer(loading, on_event, on_copy)
    return tracer


def follow(
    duration: Optional[float],
    interval: Optional[float],
    watches: Sequence[AnyWatch],
    tracer: Tracer,
    interrupts: Interrupts,
    progress: Callable[[Optional[float]], None],
    due: Callable[[Sequence[AnyWatch]], None],
    family: Optional[Family[AnyWatch]] = None,
    polled: Callable[[], None] = lambda: None,
) -> EndedBy:
    """Handle events until the trace ends; return why it ended.

    ``duration`` and ``interval`` in seconds, None for none.  ``progress`` gets the seconds that are left;
    ``due`` the live watches, once each interval, but not at the end; ``polled`` is called when events have
    been handled, before any stack is unwound.
    """
    began = time.monotonic()
    polled_at = 0.0
    is_behind: list[bool] = []
    ends = None if duration is None else began + duration
    next_due = None if interval is None else began + interval
    while True:
        going = [watch for watch in watches if not watch.over]
        if not going:
            return EndedBy.TARGET_EXIT
        living = [watch for watch in going if watch.ended_by is None]
        now = time.monotonic()
        until = now + (_POLL_SECONDS if any(is_behind) else _IDLE_SECONDS)
        until = min([until, *(moment for moment in (ends, next_due) if moment is not None)])
        held = (watch.target for watch in going)
        urgent = [interrupts.fileno(), *(one.fileno() for one in held if isinstance(one, Target))]
        if _readable([tracer.fileno(), *urgent], until) == [tracer.fileno()]:
            _readable(urgent, min(until, polled_at + _POLL_SECONDS))
        tracer.poll()
        polled_at = time.monotonic()
        tracer.find_silent()
        polled()
        tracer.find_missed_exits()
        crowded = tracer.crowded()
        is_behind = [watch.housekeep(tracer, crowded) for watch in living]
        if family is not None:
            is_behind.append(family.housekeep(tracer, crowded))
        if interrupts.received:
            return EndedBy.INTERRUPT
        now = time.monotonic()
        if ends is not None and now >= ends:
            return EndedBy.DURATION
        progress(None if ends is None else ends - now)
        if next_due is not None and interval is not None and now >= next_due:
            for watch in living:
                watch.skipped_reports += int((now - next_due) // interval)
            # On a fixed grid, so that regular events are equally distributed over the intervals.
            next_due = max(next_due + interval, now)
            due(living)


def _readable(fds: Sequence[int], until: float) -> list[int]:
    """Wait until one is readable, or until a time of CLOCK_MONOTONIC; return those that are."""
    return readable(fds, until - time.monotonic())


class Cost:
    """The cost of the tracer and its worker since it attached, and of its BPF programs if measured."""

    def __init__(self, engine: Engine, measured: Optional[Tracer] = None) -> None:
        self._engine = engine
        self._measured = measured
        self._from = self._used()

    def now(self) -> TracerCost:
        """The cost up to now."""
        cost = TracerCost(cpu_seconds=self.cpu_seconds)
        if self._measured is None:
            return cost
        ran = self._measured.run_times().values()
        nanoseconds = sum(program.nanoseconds for program in ran)
        return replace(cost, bpf_seconds=nanoseconds / 1e9, bpf_runs=sum(program.runs for program in ran))

    @property
    def cpu_seconds(self) -> float:
        """CPU time up to now, without that of the programs in the kernel."""
        return self._used() - self._from

    def _used(self) -> float:
        # Not RUSAGE_CHILDREN, as a COMMAND is a child as well.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime + self._engine.cpu_seconds
