# SPDX-License-Identifier: Apache-2.0
"""One address space under the tracer: its registration, its baseline, its ledger, its stacks, its end."""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional, TypeVar, Union

from ebpftrace.addresses import RangeSet
from ebpftrace.capture.kernel_events import (
    Awaited,
    CodeMapped,
    Executed,
    ImageExecuted,
    ImageMapped,
    KernelEvent,
    ListedAtEnd,
    Settled,
    Walked,
)
from ebpftrace.capture.layout import CODE_REST_NS, CallKind
from ebpftrace.capture.registration import confirm, preload, register_threads
from ebpftrace.capture.snapshot import Snapshot
from ebpftrace.capture.tracer import Tracer, code_ranges
from ebpftrace.errors import CannotTrace
from ebpftrace.ledger.replay import Ledger
from ebpftrace.model import EndedBy, FailedCall, Interval, TargetInfo, Vma
from ebpftrace.nptl.symbols import file_mappings
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.clock import read_clock
from ebpftrace.procfs.maps import read_heap_end, read_maps
from ebpftrace.procfs.namespaces import inner_number
from ebpftrace.procfs.status import read_target_info
from ebpftrace.procfs.target import ExitedTarget, Target, refuse_32_bit
from ebpftrace.procfs.tasks import Listed, Task, listed_tasks
from ebpftrace.text import plural
from ebpftrace.unwind.copies import StackCopy
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver
from ebpftrace.unwind.sites import SiteStacks
from ebpftrace.unwind.stack_warnings import StackWarnings
from ebpftrace.vmas import Vmas

if TYPE_CHECKING:
    from ebpftrace.sessions.family import Image

_COMPACT_AT = 100_000
"""Ledger events that wait to be folded; bounds memory and the work of a report."""

_MAX_CALL_NS = 1_000_000_000
"""The events of a munmap or mremap that takes longer may be applied inexactly."""

_MAX_EXIT_NS = 500_000_000
"""How long an exiting thread may still be listed in /proc after its exit event."""

_CODE_SHARE = 100
"""Readings of the mapped code use at most 1/100 of a CPU."""

_MAX_FAILED = 10_000
"""Failed calls whose arguments are stored, the latest."""

_START_NS = 500_000_000
"""How long the first stacks of a program may wait to be unwound, as it may end at once."""

_COPIES_AT_ONCE = 200
"""Most stacks unwound between two polls."""

_SERIALS = itertools.count()

Self = TypeVar("Self", bound="Watch")


class Watch:
    """A traced address space: ``attach``, then ``handle`` gets its events; the subclasses make reports."""

    def __init__(self, target: Union[Target, ExitedTarget], engine: Engine, program: str = "") -> None:
        """``program`` is the path of a COMMAND's program, which may end before /proc can be read."""
        self.target = target
        self.serial = next(_SERIALS)
        """Identifies it, as numbers of address spaces are reused."""
        self.executed_path = ""
        """The program that the process executed, if that ended the address space."""
        self.follows_exec = False
        """The process is traced on after it executes another program."""
        self.ended_by: Optional[EndedBy] = None
        """Why this address space has ended; None while it lives."""
        self.skipped_reports = 0
        """Reports of --interval that were skipped because the one before took longer."""
        self.space = -1
        self.began_at = 0
        self._engine = engine
        self._clock = read_clock()
        self._ledger = Ledger([])
        inner_pid = inner_number(target.pid, target.pid)
        self._info = TargetInfo(target.pid, Path(program).name, program, inner_pid=inner_pid)
        self._ended_at: Optional[int] = None
        self._compact_at = _COMPACT_AT
        self._code_at: Optional[int] = None
        """When code was mapped that has not been read yet, in ns of CLOCK_MONOTONIC."""
        self._read_code_at = 0.0
        """Earliest time to read it, in seconds of CLOCK_MONOTONIC."""
        self._notes: list[str] = []
        self._failed: deque[FailedCall] = deque(maxlen=_MAX_FAILED)
        self._doubtful: deque[FailedCall] = deque(maxlen=_MAX_FAILED)
        """Failed calls that may have changed something."""
        self._resolve_at = 0.0
        self._stacks = SiteStacks(engine.waiting)
        self._stack_warnings = StackWarnings()
        self.code: list[Vma] = []
        """Files that it executed when its baseline was read."""
        self._code: list[Interval] = []
        """Ranges of code before the trace began."""
        self._preloaded: dict[Listed, Task] = {}
        self._unconfirmed: list[Task] = []
        """Threads that were registered, and may have exited just before."""
        self._held = ExitStack()
        self._held.callback(self._stacks.forget_waiting)
        self._resolver: Optional[StackResolver] = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def pid(self) -> int:
        """The process that represents the address space."""
        return self.target.pid

    @property
    def over(self) -> bool:
        """No more events will come from the process that the user named."""
        return self.ended_by is not None and not (
            self.follows_exec and self.ended_by is EndedBy.EXEC and not self.target.exited
        )

    @property
    def begun(self) -> bool:
        """The baseline has been read; false for a COMMAND that has not executed yet."""
        return self.began_at > 0

    @property
    def lived_ns(self) -> int:
        """How long it has been watched, up to its end."""
        return (self._ended_at or time.monotonic_ns()) - self.began_at

    def note(self, text: str) -> None:
        """Add a note to the reports, unless they have it already."""
        if text not in self._notes:
            self._notes.append(text)

    def preload_threads(self) -> None:
        """Read the threads while the programs are compiled, so that ``attach`` is quicker."""
        self._preloaded = preload(listed_tasks(self.pid))

    def attach(self, tracer: Tracer) -> None:
        """Trace a running process: register its threads, read the baseline.

        Raises CannotTrace, or ProcessGone if it exits meanwhile.
        """
        self.space = tracer.add_space(self.pid, read_heap_end(self.pid), self._code)
        registered, notes = register_threads(self.pid, self.space, tracer, self._preloaded)
        self._preloaded = {}
        self._unconfirmed = registered.added
        self._notes += notes
        self.begin(tracer)

    def attach_at_exec(self, tracer: Tracer) -> None:
        """Trace a process that waits to execute its program; ``begin`` follows when it does."""
        self.space = tracer.add_pending_space(self.pid)
        self._resolver = self._resolve(will_execute=True)

    def settle(self, space: int, event: Settled, image: Image, tracer: Tracer) -> None:
        """Begin with a followed process that got a number; it may have exited already.

        ``image``: the files that it executes, according to the events.
        """
        self.space, self.began_at = space, event.at
        executed = image.executed
        path = executed.file.path if executed is not None else ""
        inner_pid = inner_number(self.pid, self.pid)
        settled = self._info = TargetInfo(
            self.pid, event.name, path, parent=event.parent, inner_pid=inner_pid
        )
        resolver = self._resolver = self._resolve(will_execute=True)
        if executed is not None:
            resolver.executed(executed.file, executed.auxv, executed.at)
        for vma, at in image.mapped:
            resolver.mapped(vma, at)
        if not self.target.exited:
            with suppress(CannotTrace):
                self.begin(tracer)
                self.began_at = event.at
            if path and not self._executes(path):
                # What was read is the program that it has executed since, which is another address space.
                self._info = replace(self._info, comm=settled.comm, exe=settled.exe)

    def begin(self, tracer: Tracer) -> None:
        """Read the baseline; mappings made from here on belong to the window."""
        self.began_at = time.monotonic_ns()
        vmas = read_maps(self.pid)
        tracer.baseline_read(self.space, vmas)
        self._ledger = Ledger(vmas)
        self.code = file_mappings(vmas)
        self._has_begun(vmas, tracer)
        if not self._code:  # a COMMAND that has only begun
            self._read_target(vmas)
        if self._resolver is not None:
            self._resolver.refresh(self.began_at, vmas)
            self._find_python(tracer, self._resolver)

    def handle(self, event: KernelEvent, tracer: Tracer) -> None:
        """Handle one event."""
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

    def keep_copy(self, _call: CallKind, copy: StackCopy) -> None:
        """Store the stack of a call."""
        self._stacks.add(copy)

    def housekeep(self, tracer: Tracer, crowded: bool, checks_end: bool = True) -> bool:
        """Do between polls what events made necessary; if ``checks_end``, find out whether the target has
        ended.

        ``crowded``: the BPF maps should be swept.  Returns whether there is more to do.
        """
        if checks_end and self.ended_by is None and self.target.exited:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
        if self._unconfirmed and time.monotonic_ns() - self.began_at > _MAX_EXIT_NS:
            confirm(self._unconfirmed, tracer.forget_thread)
            self._unconfirmed = []
        if time.monotonic() >= self._resolve_at:
            self._resolve_doubtful()
        if crowded or self._ledger.pending > self._compact_at:
            self._compact(tracer)
        if self._code_at is not None and self.ended_by is None and time.monotonic() >= self._read_code_at:
            self._read_code(tracer, self._code_at)
        if self._resolver is not None and not self._has_only_begun():
            self._stacks.work(self._resolver, _COPIES_AT_ONCE)
            return self._stacks.waiting > 0 or self._code_at is not None
        return self._code_at is not None

    def _has_only_begun(self) -> bool:
        """It has hardly done anything yet; if it ends at once, none of its stacks is needed."""
        return self._stacks.has_little and time.monotonic_ns() - self.began_at < _START_NS

    def _read_code(self, tracer: Tracer, mapped_at: int) -> None:
        """Read which code is mapped; again later, if more may have been mapped without an event."""
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
        # Limited by CPU time: with a JIT compiler and many mappings we would read all the time.
        rest = max(CODE_REST_NS / 1e9, (time.thread_time() - used) * _CODE_SHARE)
        self._read_code_at = time.monotonic() + rest

    def _find_python(self, tracer: Tracer, resolver: StackResolver) -> None:
        places = resolver.find_python()
        if places is not None:
            tracer.python_found(self.space, places)

    def _resolve_doubtful(self) -> None:
        """Find out what failed calls changed all the same, within a share of CPU time."""
        if not self._doubtful or self.ended_by is not None:
            return
        used = time.thread_time()
        try:
            vmas = read_maps(self.pid)
        except ProcessGone:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
            return
        self._ledger.resolve_failed(self._doubtful, RangeSet(zip(vmas.starts, vmas.ends)))
        self._doubtful.clear()
        self._resolve_at = time.monotonic() + (time.thread_time() - used) * _CODE_SHARE

    def _compact(self, tracer: Tracer) -> None:
        """Fold past events, and sweep the BPF maps."""
        # A call in progress may still send an event with the time of its entry.
        now = time.monotonic_ns() - _MAX_CALL_NS
        read = tracer.read()[self.space]
        tracer.poll()
        self._ledger.compact(read.rows, now, read.runs)
        self._compact_at = max(_COMPACT_AT, 2 * self._ledger.pending)
        tracer.sweep(
            self.space,
            self._ledger.leftovers(
                read.rows, read.threads.values(), read.runs, read.brk_growth, read.sightings
            ),
        )

    def _has_begun(self, vmas: Vmas, tracer: Tracer) -> None:
        """Called when the baseline has been read; for subclasses."""

    def _has_read_code(self, vmas: Vmas, tracer: Tracer) -> None:
        """Called when code has been read again; for subclasses."""

    def notes(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Return lines for the report: what may be missing, and why."""
        dropped = snapshot.dropped_copy_bytes + self._stacks.dropped_bytes
        behind: tuple[str, ...] = ()
        if self.skipped_reports:
            skipped = plural(self.skipped_reports, "report")
            behind = (f"{skipped} of --interval skipped: making one takes longer than the interval",)
        return (*behind, *self._notes, *self._stack_warnings.notes(dropped))

    def _read_target(self, vmas: Vmas) -> None:
        """Read the target's name, size and code."""
        self._code = code_ranges(vmas)
        self._info = replace(read_target_info(self.pid), parent=self._info.parent)
        if self._resolver is None:
            self._resolver = self._resolve(will_execute=False)

    def _executes(self, program: str) -> bool:
        """Whether that is what the process executed when its name was read; by the file's name."""
        return Path(self._info.exe.removesuffix(" (deleted)")).name == Path(program).name

    def _resolve(self, will_execute: bool) -> StackResolver:
        return self._held.enter_context(
            StackResolver(self.pid, self._engine, self._stack_warnings, will_execute)
        )

    def _executed(self, event: Executed, tracer: Tracer) -> None:
        if event.tid != self.pid:
            return  # a vfork child has left; the address space goes on
        if self.begun:
            self._end(EndedBy.EXEC, event.at)
            return
        try:
            refuse_32_bit(self.pid)  # the interpreter of a script may have 32 bits
            self.begin(tracer)
            self.began_at = event.at
        except ProcessGone:
            self.began_at = event.at
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())

    def _end(self, ended_by: EndedBy, at: int) -> None:
        self.ended_by = ended_by
        self._ended_at = at


def vma_of(event: ImageMapped) -> Vma:
    """Return the mapping of an executed file, as /proc/PID/maps would show it."""
    start, end = event.interval
    device, inode, path = event.file
    return Vma(start, end, "r-xp", event.offset, device, inode, path)
