# SPDX-License-Identifier: Apache-2.0
"""What the jobs on the kernel's ledger share: a tracer with room for its targets, the loop, the cost."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Optional, TypeVar

from ebpftrace.defaults import COPIES_PER_SECOND, STACK_BYTES
from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.jobs.waiting import readable
from ebpftrace.kernel.layout import Follow
from ebpftrace.kernel.loading import Loading
from ebpftrace.kernel.sizing import Needs
from ebpftrace.model import EndedBy, TracerCost
from ebpftrace.process.maps import count_areas
from ebpftrace.process.procfs import task_ids
from ebpftrace.process.status import max_map_count, pid_max
from ebpftrace.process.target import Target

if TYPE_CHECKING:
    from ebpftrace.jobs.family import Family
    from ebpftrace.jobs.watch import Watch
    from ebpftrace.kernel.tracer import KernelEvent, RawCopy, Tracer
    from ebpftrace.stacks.engine import Engine

_IDLE_SECONDS = 1.0
"""How long a few events may wait to be handled; the kernel side wakes us for many, and for urgent ones ..."""
_POLL_SECONDS = 0.1
"""... but we do not come sooner than this after the last time."""

AnyWatch = TypeVar("AnyWatch", bound="Watch")


def begin_loading(
    pids: Sequence[int],
    max_mappings: Optional[int] = None,
    stack_bytes: int = STACK_BYTES,
    copies_per_second: int = COPIES_PER_SECOND,
    follow: Follow = Follow.NOTHING,
    threads_only: bool = False,
) -> Loading:
    """Begin to load the programs, with room for what these processes have and may come to have.

    ``max_mappings``: rows in the kernel's ledger; None: by what is mapped.  ``threads_only``: no program
    runs at system calls, so there are no rows.  Raises CannotTrace.
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
    )
    return Loading(needs)


def open_tracer(watches: Sequence[Watch], loading: Loading, family: Optional[Family] = None) -> Tracer:
    """Wait until the programs are attached; the watches get what they tell.  Raises CannotTrace.

    ``family`` gets it too, and what is told of other processes.
    """
    from ebpftrace.kernel.tracer import Tracer  # not at the top: see ``jobs.mmap_leaks.run``

    by_space = dict(enumerate(watches))

    def on_event(space: int, event: KernelEvent) -> None:
        watch = by_space.get(space)
        if family is not None:
            family.take(space, event, watch, tracer)
        if watch is not None:
            watch.handle(event, tracer)

    def on_copy(space: int, copy: RawCopy) -> None:
        watch = by_space.get(space)
        if watch is not None:
            watch.keep_copy(copy)
        elif family is not None:
            family.keep_copy(space, copy)

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
    family: Optional[Family] = None,
) -> EndedBy:
    """Handle events until the trace ends; return why it does.

    ``duration`` and ``interval`` in seconds, None for none.  ``progress`` is told how many seconds are left;
    ``due`` which watches live, once each interval, but not at the end.
    """
    began = time.monotonic()
    polled = 0.0
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
            _readable(urgent, min(until, polled + _POLL_SECONDS))
        tracer.poll()
        polled = time.monotonic()
        tracer.find_missed_exits()
        crowded = tracer.crowded()
        is_behind = [watch.tend(tracer, crowded) for watch in living]
        if family is not None:
            is_behind.append(family.tend(tracer, crowded))
        if interrupts.received:
            return EndedBy.INTERRUPT
        now = time.monotonic()
        if ends is not None and now >= ends:
            return EndedBy.DURATION
        progress(None if ends is None else ends - now)
        if next_due is not None and interval is not None and now >= next_due:
            for watch in living:
                watch.skipped_reports += int((now - next_due) // interval)
            # On a fixed grid, so that what comes regularly is seen regularly.
            next_due = max(next_due + interval, now)
            due(living)


def _readable(fds: Sequence[int], until: float) -> list[int]:
    """Wait until one can be read, or until a moment of CLOCK_MONOTONIC; return those that can."""
    return readable(fds, until - time.monotonic())


@contextmanager
def collector_off() -> Iterator[None]:
    """Without Python's cycle collector: where much is made and kept, it would walk it all again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Cost:
    """What the tracer and its worker have used since it attached; its programs too, where measured."""

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
        # Not RUSAGE_CHILDREN: a COMMAND is a child too.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime + self._engine.cpu_seconds
