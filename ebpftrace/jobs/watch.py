# SPDX-License-Identifier: Apache-2.0
"""One address space under the tracer: its registration, its baseline, its ledger, its stacks, its end."""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Optional, TypeVar, Union

from ebpftrace.covered import Covered
from ebpftrace.jobs.threads import register_threads
from ebpftrace.kernel.images import code_ranges
from ebpftrace.kernel.layout import CODE_REST_NS, signed_bytes
from ebpftrace.kernel.registration import confirm, meet
from ebpftrace.kernel.snapshot import Snapshot
from ebpftrace.kernel.tracer import (
    Awaited,
    CodeMapped,
    Executed,
    ImageExecuted,
    ImageMapped,
    KernelEvent,
    ListedAtEnd,
    RawCopy,
    Settled,
    Tracer,
    Walked,
)
from ebpftrace.ledger.replay import Ledger
from ebpftrace.model import EndedBy, FailedCall, Interval, TargetInfo, Vma
from ebpftrace.process.clock import read_clock
from ebpftrace.process.maps import read_heap_end, read_maps
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.status import read_target_info
from ebpftrace.process.target import Gone, Target, refuse_32_bit
from ebpftrace.process.tasks import Listed, Task, listed_tasks
from ebpftrace.stacks.copies import StackCopy
from ebpftrace.stacks.engine import Engine
from ebpftrace.stacks.resolve import StackResolver
from ebpftrace.stacks.shortfalls import Shortfalls
from ebpftrace.stacks.sites import SiteStacks
from ebpftrace.text import plural
from ebpftrace.vmas import Vmas

_COMPACT_AT = 100_000
"""Ledger events kept before they are folded: bounds memory and the work of a report."""

_LONGEST_CALL = 1_000_000_000
"""ns that an munmap or mremap may take and its event still be told exactly."""

_LONGEST_EXIT = 500_000_000
"""ns that a thread may still be listed after the kernel side would have seen its exit."""

_CODE_SHARE = 100
"""Readings of which code is mapped take no more than one in so many seconds of CPU."""

_MOST_FAILED = 10_000
"""Failed calls of which the arguments are remembered, the latest."""

_COPIES_AT_ONCE = 200
"""Stacks unwound between two polls; the rest waits."""

_SERIALS = itertools.count()

Self = TypeVar("Self", bound="Watch")


class Watch:
    """A traced address space: ``attach``, then events come in by ``handle``; its kinds make the reports."""

    def __init__(self, target: Union[Target, Gone], engine: Engine, program: str = "") -> None:
        """``program`` is the path of a COMMAND's program, which may be gone before it can be looked at."""
        self.target = target
        self.serial = next(_SERIALS)
        """Tells it from all others, also from those that had its address space's number before."""
        self.executed_path = ""
        """What the process executed, where that ended its address space."""
        self.follows_exec = False
        """What the process executes later is traced too."""
        self.ended_by: Optional[EndedBy] = None
        """Why this address space is at its end; None while it lives."""
        self.skipped_reports = 0
        """Reports of --interval that were not made, since the one before took longer."""
        self.space = -1
        self.began_at = 0
        self._engine = engine
        self._clock = read_clock()
        self._ledger = Ledger([])
        self._info = TargetInfo(target.pid, Path(program).name, program)
        self._ended_at: Optional[int] = None
        self._compact_at = _COMPACT_AT
        self._code_at: Optional[int] = None
        """When executable memory was mapped of which no reading has been made; in ns of CLOCK_MONOTONIC."""
        self._read_code_at = 0.0
        """Not sooner, in seconds of CLOCK_MONOTONIC."""
        self._notes: list[str] = []
        self._failed: deque[FailedCall] = deque(maxlen=_MOST_FAILED)
        self._doubtful: deque[FailedCall] = deque(maxlen=_MOST_FAILED)
        """Those that may have changed something."""
        self._settle_at = 0.0
        self._stacks = SiteStacks()
        self._shortfalls = Shortfalls()
        self._code: list[Interval] = []
        """Where code lay when we met."""
        self._met: dict[Listed, Task] = {}
        self._unconfirmed: list[Task] = []
        """Who was registered, and may have exited just before."""
        self._held = ExitStack()
        self._resolver: Optional[StackResolver] = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def pid(self) -> int:
        """The process that stands for the address space."""
        return self.target.pid

    @property
    def over(self) -> bool:
        """Nothing more will come of the process that the user named."""
        return self.ended_by is not None and not (
            self.follows_exec and self.ended_by is EndedBy.EXEC and not self.target.exited
        )

    @property
    def begun(self) -> bool:
        """The baseline has been read; false for a COMMAND that has not executed yet."""
        return self.began_at > 0

    def note(self, text: str) -> None:
        """Have the reports say something, once."""
        if text not in self._notes:
            self._notes.append(text)

    def meet_threads(self) -> None:
        """Read who the threads are, while the programs are compiled: ``attach`` is done sooner then."""
        self._met = meet(listed_tasks(self.pid))

    def attach(self, tracer: Tracer) -> None:
        """Trace a running process that ``look`` has seen: register its threads, read the baseline.

        Raises CannotTrace, ProcessGone where it exits meanwhile.
        """
        self.space = tracer.add_space(self.pid, read_heap_end(self.pid), self._code)
        registered, notes = register_threads(self.pid, self.space, tracer, self._met)
        self._met = {}
        self._unconfirmed = registered.added
        self._notes += notes
        self.begin(tracer)

    def attach_at_exec(self, tracer: Tracer) -> None:
        """Trace a process that waits to execute its program; ``begin`` follows when it does."""
        self.space = tracer.add_pending_space(self.pid)
        self._resolver = self._resolve(will_execute=True)

    def begin(self, tracer: Tracer) -> None:
        """Read the baseline; what is mapped from here on is the window's."""
        self.began_at = time.monotonic_ns()
        vmas = read_maps(self.pid)
        tracer.baseline_read(self.space, vmas)
        self._ledger = Ledger(vmas)
        self._has_begun(vmas, tracer)
        if not self._code:  # a COMMAND that has only begun
            self._meet(vmas)
        if self._resolver is not None:
            self._resolver.refresh(self.began_at, vmas)
            self._find_python(tracer, self._resolver)

    def handle(self, event: KernelEvent, tracer: Tracer) -> None:
        """Take in one event of the kernel side."""
        if isinstance(event, Executed):
            self._executed(event, tracer)
        elif isinstance(event, CodeMapped):
            self._code_at = event.at
        elif isinstance(event, ImageExecuted):
            if self._resolver is not None and event.tid == self.pid:
                self._resolver.executed(event.file, event.auxv, event.at)
        elif isinstance(event, ImageMapped):
            if self._resolver is not None:
                self._resolver.mapped(vma_of(event), event.at)
        elif isinstance(event, FailedCall):
            self._failed.append(event)
            if event.call in ("mmap", "mremap"):
                self._doubtful.append(event)
        elif not isinstance(event, (ListedAtEnd, Walked, Awaited, Settled)):  # of the end, and of others
            self._ledger.apply(event)

    def keep_copy(self, copy: RawCopy) -> None:
        """Take in the stack of a call."""
        self._stacks.add(
            StackCopy(
                signature=copy.site,
                at=copy.at,
                tid=copy.tid,
                registers=copy.registers,
                memory=copy.memory,
                truncated=copy.is_cut,
                python=copy.python,
                missing=copy.missing,
                signed=signed_bytes(copy.call),
                argument=copy.argument,
            )
        )

    def tend(self, tracer: Tracer, crowded: bool, look: bool = True) -> bool:
        """Do between polls what events made necessary; notice the target's end, if told to ``look``.

        ``crowded``: the kernel's tables should be swept.  Returns whether there is more to do.
        """
        if look and self.ended_by is None and self.target.exited:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
        if self._unconfirmed and time.monotonic_ns() - self.began_at > _LONGEST_EXIT:
            confirm(self._unconfirmed, tracer.forget_thread)
            self._unconfirmed = []
        if time.monotonic() >= self._settle_at:
            self._settle_doubts()
        if crowded or self._ledger.pending > self._compact_at:
            self._compact(tracer)
        if self._code_at is not None and self.ended_by is None and time.monotonic() >= self._read_code_at:
            self._read_code(tracer, self._code_at)
        if self._resolver is not None:
            self._stacks.work(self._resolver, _COPIES_AT_ONCE)
        return self._stacks.waiting > 0 or self._code_at is not None

    def _read_code(self, tracer: Tracer, mapped_at: int) -> None:
        """Read which code is mapped; again later, if the kernel side may have kept silent of more."""
        used, began_at = time.thread_time(), time.monotonic_ns()
        self._code_at = mapped_at if began_at - mapped_at < CODE_REST_NS else None
        try:
            vmas = read_maps(self.pid)
        except ProcessGone:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
            return
        tracer.code_read(self.space, vmas)
        self._has_read_code(vmas, tracer)
        if self._resolver is not None:
            self._resolver.refresh(began_at, vmas)
            self._find_python(tracer, self._resolver)
        # CPU time: a JIT in a process of many mappings would have us read them all the time.
        rest = max(CODE_REST_NS / 1e9, (time.thread_time() - used) * _CODE_SHARE)
        self._read_code_at = time.monotonic() + rest

    def _find_python(self, tracer: Tracer, resolver: StackResolver) -> None:
        places = resolver.find_python()
        if places is not None:
            tracer.python_found(self.space, places)

    def _settle_doubts(self) -> None:
        """Find out what calls that failed did all the same; no more often than a share of CPU time allows."""
        if not self._doubtful or self.ended_by is not None:
            return
        used = time.thread_time()
        try:
            vmas = read_maps(self.pid)
        except ProcessGone:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
            return
        self._ledger.settle(self._doubtful, Covered(zip(vmas.starts, vmas.ends)))
        self._doubtful.clear()
        self._settle_at = time.monotonic() + (time.thread_time() - used) * _CODE_SHARE

    def _compact(self, tracer: Tracer) -> None:
        """Fold the events of the past, and have the kernel forget what nothing is left of."""
        # A call that is under way may still tell of its beginning.
        now = time.monotonic_ns() - _LONGEST_CALL
        read = tracer.read()[self.space]
        tracer.poll()
        self._ledger.compact(read.rows, now, read.runs)
        self._compact_at = max(_COMPACT_AT, 2 * self._ledger.pending)
        tracer.sweep(
            self.space,
            self._ledger.leftovers(read.rows, read.threads.values(), read.runs, read.brk_growth, read.stands),
        )

    def _has_begun(self, vmas: Vmas, tracer: Tracer) -> None:
        """For kinds of watches that want to look at the process when its baseline has been read."""

    def _has_read_code(self, vmas: Vmas, tracer: Tracer) -> None:
        """For kinds of watches that want to know of libraries that are loaded."""

    def notes(self, snapshot: Snapshot) -> tuple[str, ...]:
        """What may be missing, and why: lines of the report."""
        dropped = snapshot.dropped_copy_bytes + self._stacks.dropped_bytes
        behind: tuple[str, ...] = ()
        if self.skipped_reports:
            skipped = plural(self.skipped_reports, "report")
            behind = (f"{skipped} of --interval skipped: making one takes longer than the interval",)
        return (*behind, *self._notes, *self._shortfalls.notes(dropped))

    def _meet(self, vmas: Vmas) -> None:
        """Read who the target is, before much changes."""
        self._code = code_ranges(vmas)
        self._info = read_target_info(self.pid)
        if self._resolver is None:
            self._resolver = self._resolve(will_execute=False)

    def _resolve(self, will_execute: bool) -> StackResolver:
        return self._held.enter_context(StackResolver(self.pid, self._engine, self._shortfalls, will_execute))

    def _executed(self, event: Executed, tracer: Tracer) -> None:
        if event.tid != self.pid:
            return  # a vfork child has left; the address space goes on
        if self.begun:
            self._end(EndedBy.EXEC, event.at)
            return
        try:
            refuse_32_bit(self.pid)  # a script's interpreter may be
            self.begin(tracer)
            self.began_at = event.at
        except ProcessGone:
            self.began_at = event.at
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())

    def _end(self, ended_by: EndedBy, at: int) -> None:
        self.ended_by = ended_by
        self._ended_at = at


def vma_of(event: ImageMapped) -> Vma:
    """The mapping of a file that is executed, as /proc/PID/maps would tell it."""
    start, end = event.interval
    device, inode, path = event.file
    return Vma(start, end, "r-xp", event.offset, device, inode, path)
