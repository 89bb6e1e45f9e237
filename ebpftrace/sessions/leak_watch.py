# SPDX-License-Identifier: Apache-2.0
"""A traced address space that is searched for leaks: its verdict without a trace, and its reports."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from ebpftrace.capture.kernel_events import (
    Awaited,
    ImageExecuted,
    ImageMapped,
    KernelEvent,
    ListedAtEnd,
    Settled,
    Walked,
)
from ebpftrace.capture.rows import no_rows
from ebpftrace.capture.snapshot import Snapshot
from ebpftrace.capture.tracer import Tracer
from ebpftrace.diagnosis import Evidence, History, baseline_verdict, diagnose, is_unjoined
from ebpftrace.errors import CannotTrace
from ebpftrace.ledger.owners import assign, totals
from ebpftrace.ledger.space import whole_mapping
from ebpftrace.ledger.thread_stacks import thread_stacks
from ebpftrace.ledger.verify import Verified, as_shown, unexplained, verify
from ebpftrace.libc import give_back_memory
from ebpftrace.model import (
    NOT_SEARCHED,
    EndedBy,
    Finding,
    Frame,
    Interval,
    Mapping,
    Memory,
    Outstanding,
    ReadState,
    Report,
    Search,
    Suspect,
    ThreadLists,
    UnjoinedBefore,
)
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.files import file_key
from ebpftrace.procfs.livethreads import read_live_threads
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.namespaces import inner_number
from ebpftrace.procfs.status import MemoryUse, live_threads, read_cores, read_memory_use
from ebpftrace.procfs.target import ExitedTarget, Target
from ebpftrace.procfs.tunables import arena_limit, read_environment
from ebpftrace.report.live_state import LiveState
from ebpftrace.sessions.attribution import Attribution, with_failures
from ebpftrace.sessions.ending import Ending, Libcs
from ebpftrace.sessions.process_snapshot import (
    GONE,
    ProcessSnapshot,
    empty_snapshot,
    read_quick_snapshot,
    read_snapshot,
    read_thread_lists_of,
)
from ebpftrace.sessions.searching import Searcher
from ebpftrace.sessions.watch import Watch, vma_of
from ebpftrace.syscall_numbers import wait_name
from ebpftrace.units import PAGE
from ebpftrace.unwind.engine import Engine
from ebpftrace.vmas import Vmas

if TYPE_CHECKING:
    from ebpftrace.sessions.family import Image


_POLL_SECONDS = 0.5
_POLL_SHARE = 0.01
"""Share of a core for reading the thread lists of a program that may end before the report."""
_READINGS = 10
"""Most repeated readings of rows and /proc until they agree: a busy program maps memory in between."""
_READINGS_SECONDS = 0.2
"""No further reading after this CPU time: mappings of drivers never agree."""
_FEW_MAPPINGS = 20_000
"""With more mappings rows and /proc are read again only once, because a reading takes long."""


@dataclass(frozen=True)
class Captured:
    """What was read while the programs were attached, which are not needed to judge it."""

    ended_by: EndedBy
    now: ProcessSnapshot
    snapshot: Snapshot
    attribution: Attribution
    outstanding: list[Outstanding]
    unexplained_bytes: int
    phantom_bytes: int
    unexplained: tuple[tuple[str, int], ...]
    is_final: bool
    """The thread lists are those of the target's last moment."""
    read_at: int
    """When the tables had been read, ns of CLOCK_MONOTONIC: later events are not counted."""
    wants_stacks: bool
    """Missing stacks count as lost."""


class LeakWatch(Watch):
    """The address space of ``mmap-leaks``: ``read_beforehand``, ``attach``, then ``report`` at any time."""

    def __init__(
        self,
        target: Union[Target, ExitedTarget],
        engine: Engine,
        libcs: Libcs,
        min_age: int,
        wants_stacks: bool,
        program: str = "",
        threads_only: bool = False,
    ) -> None:
        """``program`` as for ``Watch``; ``threads_only``: no system call is traced."""
        super().__init__(target, engine, program)
        self._ending = Ending(target.pid, libcs)
        self._program = ""
        """The program that it executes, according to the events."""
        self._is_child = False
        self.keeps_ledger = False
        """Store ``ledger_mappings`` at each report."""
        self.ledger_mappings: list[Mapping] = []
        """The ledger's mappings at the last report, not yet compared with /proc."""
        self._min_age = min_age
        self._wants_stacks = wants_stacks
        self._threads_only = threads_only
        self._thread_lists = GONE
        self._history = History()
        self._memory: Optional[MemoryUse] = None
        """Its size when the window began."""
        self._arena_limit: Optional[int] = None
        self._poll_at = 0.0
        """When the thread lists are read next, as ``time.monotonic`` counts."""
        self._last: Optional[ProcessSnapshot] = None

    def read_beforehand(self, *, confirm: bool = True) -> None:
        """Read glibc's thread lists before tracing begins.  Raises CannotTrace.

        ``confirm`` is as for ``read_thread_lists``: not needed if ``verdict`` reads them again.
        """
        read_at = time.monotonic_ns()
        vmas = read_maps(self.pid)
        self._thread_lists = read_thread_lists_of(self.pid, vmas, confirm=confirm)
        self._history.add(self._thread_lists, read_at, time.monotonic_ns())
        self._read_target(vmas)

    def verdict(self, search: Searcher) -> Report:
        """Report what has leaked already, without a trace.  Raises CannotTrace.

        The more time since ``read_beforehand`` the better: threads joined since then are not suspected.
        """
        now = self._take_snapshot(read_snapshot)
        self._history.add(now.thread_lists, now.read_at, now.read_until)
        diagnosis = baseline_verdict(
            now.thread_lists,
            now.vmas,
            self._name_of,
            self._thread_lists,
            partial(self._search, search, now),
            self._history,
            self._stack_shaped(now),
        )
        report = self._report(
            EndedBy.DURATION, Snapshot(), [], diagnosis.findings, now.memory, time.monotonic_ns()
        )
        # The report is of one moment: sizes read earlier are not the begin of a window.
        memory, target = report.memory, report.target
        return replace(
            report,
            memory=replace(memory, virt_start=memory.virt_end, rss_start=memory.rss_end),
            target=replace(target, threads_start=target.threads),
            notes=(*report.notes, *diagnosis.notes),
            undecided=diagnosis.undecided,
            searched=diagnosis.search,
        )

    def unjoined_before(self) -> UnjoinedBefore:
        """Return the exited threads that had not been joined when the trace began."""
        # Who was created after the mappings had been read is left out: the size of its stack is not known.
        unjoined = [
            (thread, thread.stack)
            for thread in self._thread_lists.threads
            if is_unjoined(thread) and thread.stack is not None
        ]
        if self._thread_lists.state is not ReadState.READ:
            unjoined = []
        routines = Counter(thread.start_routine for thread, _ in unjoined)
        return UnjoinedBefore(
            target=self._info,
            threads=len(unjoined),
            size=sum(stack.size for _, stack in unjoined),
            routines=tuple((self._name_of(routine), number) for routine, number in routines.most_common()),
        )

    def attach_at_exec(self, tracer: Tracer) -> None:
        """Like ``Watch.attach_at_exec``; also find the program's libc, which is needed at its end."""
        super().attach_at_exec(tracer)
        self._ending.begins(self._info.exe, self.space, tracer)

    def begin(self, tracer: Tracer) -> None:
        """Like ``Watch.begin``; growth counts from the present size."""
        super().begin(tracer)
        self._memory = read_memory_use(self.pid)
        self._info = replace(self._info, threads_start=live_threads(self.pid))

    def handle(self, event: KernelEvent, tracer: Tracer) -> None:
        """Like ``Watch.handle``; also handle the events of the end."""
        if isinstance(event, (ListedAtEnd, Walked, Awaited)):
            self._ending.handle(event)
            if self._is_child and isinstance(event, Walked) and event.dies and self.ended_by is None:
                self._end(EndedBy.TARGET_EXIT, event.ended_at)
            return
        if isinstance(event, ImageExecuted) and event.tid == self.pid:
            self._ending.executed(event)
            self._program = event.file.path
        elif isinstance(event, ImageMapped):
            self._ending.mapped(event.file, vma_of(event), self.space, tracer)
        super().handle(event, tracer)

    def settle(self, space: int, event: Settled, image: Image, tracer: Tracer) -> None:
        """As ``Watch.settle``; and take in what is needed at its end."""
        self._is_child = True
        if image.executed is not None:
            self._ending.executed(image.executed)
        for vma, _ in image.mapped:
            self._ending.mapped(file_key(vma), vma, space, tracer)
        super().settle(space, event, image, tracer)

    def housekeep(self, tracer: Tracer, crowded: bool, checks_end: bool = True) -> bool:
        """As ``Watch.housekeep``; also read the thread lists: they show joins, and may be gone later."""
        reads_again = not self._ending.knows_libc or time.monotonic() >= self._poll_at
        if self._threads_only and self.begun and reads_again:
            self._code_at = time.monotonic_ns()  # nobody says when a library is loaded
        has_more = super().housekeep(tracer, crowded, checks_end)
        if self.begun and time.monotonic() >= self._poll_at:
            self._poll_at = self._poll_lists()
        return has_more

    def report(self, tracer: Tracer, ended_by: EndedBy, search: Searcher) -> Report:
        """Report what stands now, while the trace goes on.  Raises CannotTrace."""
        return self.judge(self.capture(tracer, ended_by), search)

    def capture(self, tracer: Tracer, ended_by: EndedBy) -> Captured:
        """Read all that a report needs the programs for.  Raises CannotTrace."""
        now = self._take_snapshot(read_snapshot)
        if self.ended_by is None:
            self._history.add(now.thread_lists, now.read_at, now.read_until)
        snapshot = tracer.read()[self.space]
        tracer.poll()  # unmaps and moves of the rows just read
        read_at = time.monotonic_ns()
        self._resolve_doubtful()
        final = self._final(snapshot)
        if final is not None:
            now = now._replace(thread_lists=final, lists_read_at=None)
        if self._info.inner_pid is not None:
            self._number_threads(snapshot)
        # A process that has ended without creating a thread leaves nothing to judge.
        ended_at_once = self.ended_by is not None and not snapshot.runs and self._stacks.has_little
        if self._resolver is not None and not ended_at_once:
            self._stacks.work(self._resolver)
        give_back_memory()  # of the reading and the stacks, because the mappings need more
        unexplained_areas: tuple[tuple[str, int], ...] = ()
        if self._threads_only:
            verified = Verified(thread_stacks(now.thread_lists, self._thread_lists, snapshot.runs), 0, 0)
        else:
            verified, unexplained_areas = self._verified_ledger(snapshot, now, tracer)
        attribution = Attribution(self._stacks)
        attribution.number(verified.mappings)
        outstanding = assign(
            verified.mappings, attribution.runs(snapshot.runs), snapshot.threads, snapshot.sightings
        )
        verified.mappings.clear()
        return Captured(
            ended_by,
            now,
            snapshot,
            attribution,
            outstanding,
            verified.unexplained_bytes,
            verified.phantom_bytes,
            unexplained_areas,
            final is not None,
            read_at,
            self._wants_stacks and not ended_at_once,
        )

    @staticmethod
    def _number_threads(snapshot: Snapshot) -> None:
        """Add the numbers that threads have in their own PID namespace; exited ones have theirs already."""
        numbers = {
            thread.id: thread.inner_tid or inner_number(thread.tgid, thread.id.tid)
            for thread in snapshot.threads.values()
        }
        for thread in list(snapshot.threads.values()):
            creator = numbers.get(thread.creator) if thread.creator is not None else None
            snapshot.threads[thread.id] = replace(
                thread, inner_tid=numbers[thread.id], creator_inner_tid=creator
            )

    def _verified_ledger(
        self, snapshot: Snapshot, now: ProcessSnapshot, tracer: Tracer
    ) -> tuple[Verified, tuple[tuple[str, int], ...]]:
        """Return the ledger's mappings that /proc confirms, and what /proc shows besides."""
        ledger_mappings = self._ledger.outstanding(snapshot.rows, snapshot.runs)
        snapshot.rows = no_rows()
        give_back_memory()
        if self.keeps_ledger:
            self.ledger_mappings = ledger_mappings.copy()
        ledger_mappings = as_shown(ledger_mappings, now.vmas, PAGE)
        verified = self._verified(ledger_mappings, now)
        if not verified.unexplained_bytes or self.ended_by is not None:
            return verified, ()
        least = self._unexplained(tracer, ledger_mappings, now.vmas, verified.unexplained_bytes)
        areas = tuple(unexplained(ledger_mappings, now.vmas)) if least else ()
        return verified._replace(unexplained_bytes=least), areas

    def judge(self, captured: Captured, search: Searcher) -> Report:
        """Make the report of what was captured.  Raises CannotTrace."""
        now, snapshot, attribution = captured.now, captured.snapshot, captured.attribution
        threads_now = self._live_threads()
        diagnosis = diagnose(
            Evidence(
                outstanding=captured.outstanding,
                thread_lists=now.thread_lists,
                vmas=now.vmas,
                tgid=self.pid,
                attached_at=self.began_at,
                report_at=self._ended_at or now.read_at,
                min_age=self._min_age,
                cores=read_cores(self.pid),
                arena_limit=self._arena_limit,
                stack_of=attribution.stack,
                name_of=self._name_of,
                live_stack_pointers={tid: sleeper.stack_pointer for tid, sleeper in now.sleepers.items()},
                thread_waits={
                    tid: wait_name(sleeper.call)
                    for tid, sleeper in now.sleepers.items()
                    if sleeper.call is not None
                },
                threads=tuple(snapshot.threads.values()),
                earlier_lists=self._thread_lists if self._thread_lists.state is ReadState.READ else None,
                target_exited_at=self._ended_at,
                lists_read_at=now.lists_read_at,
                history=self._history,
                search=partial(self._search, search, now),
                virt_growth=_growth(self._memory, now.memory),
                thread_growth=_difference(self._info.threads_start, threads_now),
                stack_shaped=self._stack_shaped(now),
                lists_final=captured.is_final,
                awaited=sorted(self._ending.awaited),
            )
        )
        findings = tuple(map(attribution.finding, diagnosis.findings))
        findings = tuple(with_failures(finding, self._failed) for finding in findings)
        report = self._report(
            captured.ended_by, snapshot, captured.outstanding, findings, now.memory, captured.read_at
        )
        return replace(
            report,
            losses=replace(report.losses, stacks=attribution.missing if captured.wants_stacks else 0),
            unexplained_bytes=captured.unexplained_bytes,
            unexplained=captured.unexplained,
            phantom_bytes=captured.phantom_bytes,
            notes=(*report.notes, *diagnosis.notes),
            undecided=diagnosis.undecided + self._unlisted(captured),
            searched=diagnosis.search,
        )

    def _unlisted(self, captured: Captured) -> int:
        """Return the number of exited threads if neither stacks were traced nor lists could be read."""
        if not self._threads_only or captured.now.thread_lists.state is ReadState.READ:
            return 0
        return sum(run.exited_at is not None for run in captured.snapshot.runs)

    def _final(self, snapshot: Snapshot) -> Optional[ThreadLists]:
        """Return the thread lists of an ended target, if the BPF programs could read them at its end."""
        at = self._ending.at
        if self.ended_by is None or at is None:
            return None
        self._ended_at = at
        # Later exits were caused by the end; an exec ends the other threads before its event.
        for thread in list(snapshot.threads.values()):
            if thread.exited_at is not None and thread.exited_at >= at:
                snapshot.threads[thread.id] = replace(thread, exited_at=None)
        snapshot.runs = [
            run._replace(exited_at=None) if run.exited_at is not None and run.exited_at >= at else run
            for run in snapshot.runs
        ]
        earlier = self._thread_lists if self._thread_lists.state is ReadState.READ else None
        thread_lists = self._ending.final(snapshot.runs, snapshot.threads.values(), earlier)
        if thread_lists.state is not ReadState.READ and thread_lists.libc != "musl":
            self.note(f"the end was not judged: {thread_lists.why}")
            return None
        return thread_lists

    def live_state(self, tracer: Tracer, seconds_left: Optional[float]) -> LiveState:
        """Return the present figures, directly from the rows of the BPF map."""
        snapshot = tracer.read()[self.space]
        rows = [whole_mapping(row) for row in snapshot.rows]
        orphans = [
            owned.mapping.size
            for owned in assign(rows, snapshot.runs, snapshot.threads, snapshot.sightings)
            if owned.owner is not None and not owned.owner.alive
        ]
        try:
            memory = self._memory_change(read_memory_use(self.pid))
        except ProcessGone:
            memory = self._memory_change(None)
        return LiveState(
            comm=self._info.comm,
            pid=self.pid,
            elapsed=(time.monotonic_ns() - self.began_at) / 1e9,
            remaining=seconds_left,
            mmap=snapshot.calls.mmap,
            munmap=snapshot.calls.munmap,
            outstanding=len(rows),
            outstanding_bytes=sum(mapping.size for mapping in rows),
            orphaned=len(orphans),
            orphaned_bytes=sum(orphans),
            memory=memory,
            threads_created=snapshot.calls.clone,
            threads_exited=snapshot.calls.thread_exit,
            threads_only=self._threads_only,
            lost=snapshot.losses.events + snapshot.losses.mappings,
        )

    def _report(
        self,
        ended_by: EndedBy,
        snapshot: Snapshot,
        outstanding: Sequence[Outstanding],
        findings: tuple[Finding, ...],
        memory: Optional[MemoryUse],
        read_at: int,
    ) -> Report:
        ended_at = self._ended_at or read_at
        made = [one for one in outstanding if not one.mapping.before_attach]
        return Report(
            target=replace(self._info, threads=self._live_threads()),
            seconds=max(0.0, (ended_at - self.began_at) / 1e9) if self.begun else 0.0,
            ended_by=ended_by,
            ended_at=ended_at,
            clock=self._clock,
            memory=self._memory_change(memory),
            calls=snapshot.calls,
            losses=snapshot.losses,
            threads=tuple(totals(made, snapshot.threads, snapshot.brk_growth, self._stacks.stack)),
            findings=findings,
            outstanding_mappings=len(made),
            outstanding_bytes=sum(one.mapping.size for one in made),
            notes=self.notes(snapshot),
            executed=self.executed_path,
            is_child=self._is_child,
            threads_only=self._threads_only,
        )

    def _has_begun(self, vmas: Vmas, tracer: Tracer) -> None:
        self._ending.find_libc(vmas, self.space, tracer)

    def _has_read_code(self, vmas: Vmas, tracer: Tracer) -> None:
        if self._threads_only and not self._ending.knows_libc:
            self._ending.find_libc(vmas, self.space, tracer)

    def _read_target(self, vmas: Vmas) -> None:
        super()._read_target(vmas)
        if self._program and not self._executes(self._program):
            # It has executed another program since.
            self._info = replace(self._info, comm=Path(self._program).name, exe=self._program)
        self._memory = read_memory_use(self.pid)
        self._arena_limit = arena_limit(read_environment(self.pid))

    def _poll_lists(self) -> float:
        """Read glibc's thread lists; return when to read them again, as ``time.monotonic`` counts."""
        began = time.thread_time()
        with suppress(CannotTrace):
            now = self._take_snapshot(read_quick_snapshot)
            if self.ended_by is None and now.thread_lists.state is ReadState.READ:
                self._history.add(now.thread_lists, now.read_at, now.read_until)
                self._last = now._replace(vmas=Vmas())
        used = time.thread_time() - began
        return time.monotonic() + max(_POLL_SECONDS, used / _POLL_SHARE)

    def _search(self, search: Searcher, now: ProcessSnapshot, suspects: Sequence[Suspect]) -> Search:
        """Search the target; if it ends meanwhile, it counts as not searched."""
        try:
            frames_of = None if self._resolver is None else self._resolver.frames_of
            return search(self.pid, suspects, now.thread_lists, now.groups, frames_of)
        except ProcessGone:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
            return replace(NOT_SEARCHED, gaps=("the process ended before its memory was searched",))

    def _stack_shaped(self, now: ProcessSnapshot) -> list[Interval]:
        """Return areas that resemble stacks and have no thread, if there are no lists of threads."""
        if now.thread_lists.state is not ReadState.ABSENT or self.ended_by is not None:
            return []
        # Rarely needed, and the import takes 20 ms.
        from ebpftrace.classify import classify
        from ebpftrace.classify.known_ranges import stacks_without_thread
        from ebpftrace.classify.model import Reading

        try:
            threads = read_live_threads(self.pid, now.groups)
        except ProcessGone:
            return []
        areas, _ = classify(Reading(now.vmas, now.thread_lists, threads))
        return stacks_without_thread(now.thread_lists, areas)

    def _live_threads(self) -> Optional[int]:
        if self.ended_by is not None:
            return None
        try:
            return live_threads(self.pid)
        except ProcessGone:
            return None

    def _name_of(self, address: int) -> Optional[Frame]:
        return None if self._resolver is None else self._resolver.name_address(address)

    def _take_snapshot(self, read: Callable[[int, ThreadLists], ProcessSnapshot]) -> ProcessSnapshot:
        """Take a snapshot with ``read``; if the target has exited, return the last known lists."""
        if self.ended_by is None:
            began = time.monotonic_ns()
            try:
                earlier = self._thread_lists if self._last is None else self._last.thread_lists
                return read(self.pid, earlier)
            except ProcessGone:
                self._end(EndedBy.TARGET_EXIT, began)
        return empty_snapshot(self._last)

    def _verified(self, mappings: list[Mapping], now: ProcessSnapshot) -> Verified:
        if self.ended_by is None:
            return verify(mappings, now.vmas, now.read_at)
        self.note(
            "the target has exited: its mappings are those of the traced calls, and /proc cannot confirm them"
        )
        return Verified(mappings, 0, 0)

    def _unexplained(self, tracer: Tracer, mappings: list[Mapping], shown: Vmas, least: int) -> int:
        """Return the bytes of /proc that remain unexplained in the best of several readings.

        Each reading is disturbed by what is mapped or unmapped between /proc and the rows, so /proc is
        compared with the rows read before it and with those read after it.  ``mappings`` come from the rows
        read last, ``least`` are their unexplained bytes; ``shown`` says how large the kernel made them.
        """
        began = time.thread_time()
        readings = _READINGS if len(mappings) <= _FEW_MAPPINGS else 1
        with suppress(ProcessGone):
            while least and readings and time.thread_time() - began <= _READINGS_SECONDS:
                readings -= 1
                read_at = time.monotonic_ns()
                vmas = read_maps(self.pid)
                least = min(least, verify(mappings, vmas, read_at).unexplained_bytes)
                if least and readings:
                    rows = tracer.read()[self.space].rows
                    tracer.poll()
                    mappings = as_shown(self._ledger.outstanding(rows), shown, PAGE)
                    least = min(least, verify(mappings, vmas, read_at).unexplained_bytes)
        return least

    def _memory_change(self, end: Optional[MemoryUse]) -> Memory:
        start = self._memory
        return Memory(
            virt_start=start.virt if start else None,
            virt_end=end.virt if end else None,
            rss_start=start.rss if start else None,
            rss_end=end.rss if end else None,
        )


def _growth(start: Optional[MemoryUse], end: Optional[MemoryUse]) -> Optional[int]:
    return _difference(start.virt if start else None, end.virt if end else None)


def _difference(start: Optional[int], end: Optional[int]) -> Optional[int]:
    return None if start is None or end is None else end - start
