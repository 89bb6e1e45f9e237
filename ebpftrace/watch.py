"""One address space under the tracer: from its registration and baseline to its report."""

from __future__ import annotations

import os
import time
from typing import NamedTuple, Optional

from ebpftrace.diagnosis import Evidence, diagnose
from ebpftrace.kernel.snapshot import Snapshot
from ebpftrace.kernel.tracer import CodeMapped, Executed, KernelEvent, RawCopy, Tracer
from ebpftrace.ledger.owners import assign
from ebpftrace.ledger.replay import Ledger
from ebpftrace.ledger.totals import totals
from ebpftrace.ledger.verify import Verified, verify
from ebpftrace.model import (
    Books,
    BooksState,
    EndedBy,
    Mapping,
    Memory,
    Outstanding,
    Report,
    TargetInfo,
    ThreadTotal,
    Vma,
)
from ebpftrace.process.books import read_books
from ebpftrace.process.clock import read_clock
from ebpftrace.process.maps import read_maps, read_smaps
from ebpftrace.process.memory import Memory as TargetMemory
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.sharing import same_address_space
from ebpftrace.process.status import MemoryUse, read_memory_use, read_target_info
from ebpftrace.process.target import Target
from ebpftrace.process.tasks import Task, list_tasks

_MOST_PASSES = 50
"""Looks at the thread list until one finds nobody new; more means that something else is wrong."""

_COMPACT_AT = 100_000
"""Ledger events kept before they are folded: bounds memory and the work of a report."""

_GONE = Books(BooksState.ABSENT, why="the target has exited")


class _Now(NamedTuple):
    """What /proc said of the target at report time."""

    read_at: int
    vmas: list[Vma]
    books: Books
    memory: Optional[MemoryUse]


class Watch:
    """A traced address space: ``begin``, then events come in by ``handle``, and ``report`` at any time."""

    def __init__(self, target: Target, min_age: int) -> None:
        self.target = target
        self.ended_by: Optional[EndedBy] = None
        """Why this address space is at its end; None while it lives."""
        self.space = -1
        self.began_at = 0
        self._min_age = min_age
        self._clock = read_clock()
        self._ledger = Ledger([])
        self._books = _GONE
        self._info = TargetInfo(target.pid, "", "")
        self._memory: Optional[MemoryUse] = None
        self._ended_at: Optional[int] = None
        self._code_changed = False
        self._notes: list[str] = []

    @property
    def pid(self) -> int:
        """The process that stands for the address space."""
        return self.target.pid

    @property
    def begun(self) -> bool:
        """The baseline has been read; false for a COMMAND that has not executed yet."""
        return self.began_at > 0

    def attach(self, tracer: Tracer) -> None:
        """Trace a running process: register its threads, then read the baseline.

        Raises CannotTrace, ProcessGone where it exits meanwhile.
        """
        self._memory = read_memory_use(self.pid)
        self._info = read_target_info(self.pid)
        self.space = tracer.add_space(read_maps(self.pid))
        self._register_threads(tracer)
        self.begin(tracer)

    def attach_at_exec(self, tracer: Tracer) -> None:
        """Trace a process that waits to execute its program; ``begin`` follows when it does."""
        self.space = tracer.add_pending_space(self.pid)

    def begin(self, tracer: Tracer) -> None:
        """Read the baseline; what is mapped from here on is the window's."""
        self.began_at = time.monotonic_ns()
        vmas = read_maps(self.pid)
        tracer.baseline_read(self.space, vmas)
        self._ledger = Ledger(vmas)
        self._books = self._read_books(vmas)
        if self._memory is None:
            self._memory = read_memory_use(self.pid)
            self._info = read_target_info(self.pid)

    def handle(self, event: KernelEvent, tracer: Tracer) -> None:
        """Take in one event of the kernel side."""
        if isinstance(event, Executed):
            self._executed(event, tracer)
        elif isinstance(event, CodeMapped):
            self._code_changed = True
        else:
            self._ledger.apply(event)

    def keep_copy(self, copy: RawCopy) -> None:
        """Take in the stack of a call."""

    def tend(self, tracer: Tracer) -> None:
        """Do between polls what events made necessary; notice the target's end."""
        if self.ended_by is None and self.target.exited:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
        if self._ledger.pending > _COMPACT_AT:
            now = time.monotonic_ns()
            rows = tracer.read()[self.space].rows
            tracer.poll()
            self._ledger.compact(rows, now)
        if self._code_changed and self.ended_by is None:
            self._code_changed = False
            try:
                tracer.code_read(self.space, read_maps(self.pid))
            except ProcessGone:
                self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())

    def report(self, tracer: Tracer, ended_by: EndedBy) -> Report:
        """Report what stands now.  Raises CannotTrace."""
        now = self._look()
        snapshot = tracer.read()[self.space]
        tracer.poll()  # holes and moves that concern the rows just read
        reported_at = time.monotonic_ns() if self._ended_at is None else self._ended_at
        verified = self._verified(self._ledger.outstanding(snapshot.rows), now)
        outstanding = assign(verified.mappings, snapshot.runs, snapshot.threads)
        diagnosis = diagnose(
            Evidence(
                outstanding=outstanding,
                books=now.books,
                vmas=now.vmas,
                tgid=self.pid,
                attached_at=self.began_at,
                report_at=reported_at,
                min_age=self._min_age,
                cores=os.cpu_count() or 1,
                threads=tuple(snapshot.threads.values()),
                earlier_books=self._books if self._books.state is BooksState.READ else None,
                target_exited_at=self._ended_at,
            )
        )
        return Report(
            target=self._info,
            seconds=(reported_at - self.began_at) / 1e9 if self.begun else 0.0,
            ended_by=ended_by,
            ended_at=reported_at,
            clock=self._clock,
            memory=self._memory_change(now.memory),
            calls=snapshot.calls,
            losses=snapshot.losses,
            threads=_thread_totals(outstanding, snapshot),
            findings=diagnosis.findings,
            outstanding_mappings=len(outstanding),
            outstanding_bytes=sum(one.mapping.size for one in outstanding if not one.mapping.before_attach),
            unexplained_bytes=verified.unexplained_bytes,
            notes=(*self._notes, *diagnosis.notes),
        )

    def _look(self) -> _Now:
        """Read what /proc says now; of a target that is gone, nothing."""
        read_at = time.monotonic_ns()
        if self.ended_by is None:
            try:
                vmas = read_smaps(self.pid)
                return _Now(read_at, vmas, self._read_books(vmas), read_memory_use(self.pid))
            except ProcessGone:
                self._end(EndedBy.TARGET_EXIT, read_at)
        return _Now(read_at, [], _GONE, None)

    def _read_books(self, vmas: list[Vma]) -> Books:
        groups = [tgid for tgid in same_address_space(self.pid).tgids if tgid != self.pid]
        with TargetMemory(self.pid) as memory:
            return read_books(self.pid, vmas, memory, groups)

    def _verified(self, mappings: list[Mapping], now: _Now) -> Verified:
        if self.ended_by is None:
            return verify(mappings, now.vmas, now.read_at)
        self._notes = ["the target is gone: what it had mapped could not be checked against /proc"]
        return Verified(mappings, 0, 0)

    def _memory_change(self, end: Optional[MemoryUse]) -> Memory:
        start = self._memory
        return Memory(
            virt_start=start.virt if start else None,
            virt_end=end.virt if end else None,
            rss_start=start.rss if start else None,
            rss_end=end.rss if end else None,
        )

    def _executed(self, event: Executed, tracer: Tracer) -> None:
        if event.tid != self.pid:
            return  # a vfork child has left; the address space goes on
        if self.begun:
            self._end(EndedBy.EXEC, event.at)
            return
        try:
            self.begin(tracer)
        except ProcessGone:
            self.began_at = event.at
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())

    def _end(self, ended_by: EndedBy, at: int) -> None:
        self.ended_by = ended_by
        self._ended_at = at

    def _register_threads(self, tracer: Tracer) -> None:
        """Add all tasks of the address space, also those of other thread groups.

        A thread that the kernel side knows brings its children in by itself, so a look that finds nobody
        unknown was complete.
        """
        added: list[Task] = []
        for _ in range(_MOST_PASSES):
            sharers = same_address_space(self.pid)
            tasks = [task for tgid in sharers.tgids for task in _tasks_of(tgid) if not task.exited]
            new = tracer.add_threads(self.space, tasks)
            added += new
            if not new:
                break
        else:
            self._notes.append("threads were created faster than they could be listed; some may be missing")
        if sharers.unchecked:
            self._notes.append(sharers.why)
        for task in added:
            if not os.path.exists(f"/proc/{task.tgid}/task/{task.id.tid}"):  # noqa: PTH110 - one call each
                tracer.forget_thread(task.id.tid)


def _tasks_of(tgid: int) -> list[Task]:
    try:
        return list_tasks(tgid)
    except ProcessGone:
        return []


def _thread_totals(outstanding: list[Outstanding], snapshot: Snapshot) -> tuple[ThreadTotal, ...]:
    return tuple(totals(outstanding))
