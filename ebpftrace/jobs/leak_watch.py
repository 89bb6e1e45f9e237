# SPDX-License-Identifier: Apache-2.0
"""A traced address space in which leaks are looked for: its verdicts before the trace and its reports."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from ebpftrace.anatomy import dissect
from ebpftrace.anatomy.areas import Sight
from ebpftrace.anatomy.claims import stacks_without_thread
from ebpftrace.diagnosis import Evidence, History, baseline_verdict, diagnose, is_unjoined
from ebpftrace.errors import CannotTrace
from ebpftrace.jobs.attribution import Attribution, with_failures
from ebpftrace.jobs.ending import Ending, Libcs
from ebpftrace.jobs.searching import Searcher
from ebpftrace.jobs.watch import Watch, vma_of
from ebpftrace.kernel.rows import no_rows
from ebpftrace.kernel.snapshot import Snapshot
from ebpftrace.kernel.tracer import (
    Awaited,
    ImageExecuted,
    ImageMapped,
    KernelEvent,
    ListedAtEnd,
    Settled,
    Tracer,
    Walked,
)
from ebpftrace.ledger.owners import assign
from ebpftrace.ledger.space import whole_mapping
from ebpftrace.ledger.thread_stacks import thread_stacks
from ebpftrace.ledger.totals import totals
from ebpftrace.ledger.verify import Verified, as_shown, unexplained, verify
from ebpftrace.model import (
    NOT_SEARCHED,
    Books,
    BooksState,
    EndedBy,
    Finding,
    Frame,
    Interval,
    Mapping,
    Memory,
    Outstanding,
    Report,
    Search,
    Standing,
    Suspect,
    TargetInfo,
    Vma,
)
from ebpftrace.process.books.symbols import file_mappings
from ebpftrace.process.files import file_key
from ebpftrace.process.livethreads import read_live_threads
from ebpftrace.process.maps import read_maps
from ebpftrace.process.now import GONE, Now, nothing_now, read_books_of, read_lists, read_now
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.status import MemoryUse, live_threads, read_memory_use
from ebpftrace.process.target import Gone, Target
from ebpftrace.process.tunables import arena_limit, read_environment
from ebpftrace.report.live_state import LiveState
from ebpftrace.spare import give_back_memory
from ebpftrace.stacks.engine import Engine
from ebpftrace.syscalls import wait_name
from ebpftrace.vmas import Vmas

if TYPE_CHECKING:
    from ebpftrace.jobs.family import Image

PAGE = os.sysconf("SC_PAGE_SIZE")

_PEEK_SECONDS = 0.5
_PEEK_SHARE = 0.01
"""Of a core, for reading the books of a program that may end before the report."""
_READINGS = 10
"""How often rows and /proc are read again where they disagree: a busy program maps in between ..."""
_READINGS_SECONDS = 0.2
"""... as long as that took no more CPU time: what a driver maps stays unexplained ..."""
_FEW_MAPPINGS = 20_000
"""... and once only where a reading takes long: then they hardly differ by more than such a moment."""


@dataclass(frozen=True)
class Captured:
    """What was read while the programs were attached; judging it needs them no more."""

    ended_by: EndedBy
    now: Now
    snapshot: Snapshot
    attribution: Attribution
    outstanding: list[Outstanding]
    unexplained_bytes: int
    phantom_bytes: int
    unexplained: tuple[tuple[str, int], ...]
    is_final: bool
    """The books are those of the target's last moment."""
    read_at: int
    """When the tables had been read, ns of CLOCK_MONOTONIC: what happens later is in no count."""


class LeakWatch(Watch):
    """``look`` first, ``attach``, then ``report`` at any time."""

    def __init__(
        self,
        target: Union[Target, Gone],
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
        self.code: list[Vma] = []
        """Files that it executed when its baseline was read."""
        self._program = ""
        """What the kernel side said that it executes."""
        self._is_child = False
        self.keeps_standing = False
        """Somebody wants to see ``standing``."""
        self.standing: list[Mapping] = []
        """What stood at the last report by the ledger alone, before it was held against /proc."""
        self._min_age = min_age
        self._wants_stacks = wants_stacks
        self._threads_only = threads_only
        self._books = GONE
        self._history = History()
        self._memory: Optional[MemoryUse] = None
        """How large it was when the window began."""
        self._arena_limit: Optional[int] = None
        self._peek_at = 0.0
        """When the books are read next, as ``time.monotonic`` counts."""
        self._last: Optional[Now] = None

    def look(self) -> None:
        """Take in what glibc's books say before tracing begins.  Raises CannotTrace."""
        read_at = time.monotonic_ns()
        vmas = read_maps(self.pid)
        self._meet(vmas)
        self._books = read_books_of(self.pid, vmas)
        self._history.add(self._books, read_at, time.monotonic_ns())

    def verdict(self, search: Searcher) -> Report:
        """Say what has leaked already, without a trace.  Raises CannotTrace.

        The longer ``look`` is ago the better: who has been joined since will not be suspected.
        """
        now = self._look(read_now)
        self._history.add(now.books, now.read_at, now.read_until)
        diagnosis = baseline_verdict(
            now.books,
            now.vmas,
            self._name_of,
            self._books,
            partial(self._search, search, now),
            self._history,
            self._stack_shaped(now),
        )
        report = self._report(
            EndedBy.DURATION, Snapshot(), [], diagnosis.findings, now.memory, time.monotonic_ns()
        )
        # It is of one moment: what was read when we came is no beginning of a window.
        memory, target = report.memory, report.target
        return replace(
            report,
            memory=replace(memory, virt_start=memory.virt_end, rss_start=memory.rss_end),
            target=replace(target, threads_start=target.threads),
            notes=(*report.notes, *diagnosis.notes),
            undecided=diagnosis.undecided,
            searched=diagnosis.search,
        )

    def standing_before(self) -> Standing:
        """Exited threads that nobody had joined when the trace began."""
        unjoined = [thread for thread in self._books.threads if is_unjoined(thread)]
        if self._books.state is not BooksState.READ:
            unjoined = []
        routines = Counter(thread.start_routine for thread in unjoined)
        return Standing(
            target=self._info,
            threads=len(unjoined),
            size=sum(thread.stack.size for thread in unjoined if thread.stack is not None),
            routines=tuple((self._name_of(routine), number) for routine, number in routines.most_common()),
        )

    def attach_at_exec(self, tracer: Tracer) -> None:
        """As ``Watch.attach_at_exec``; what its program is linked with is needed at its end."""
        super().attach_at_exec(tracer)
        self._ending.begins(self._info.exe, self.space, tracer)

    def begin(self, tracer: Tracer) -> None:
        """As ``Watch.begin``; how large the process is counts from here."""
        super().begin(tracer)
        self._memory = read_memory_use(self.pid)
        self._info = replace(self._info, threads_start=live_threads(self.pid))

    def handle(self, event: KernelEvent, tracer: Tracer) -> None:
        """As ``Watch.handle``; and take in what tells of the end."""
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
        """Watch a process that is followed from its first thread on; it may be gone already.

        ``image`` is what the kernel side told of what it executes.
        """
        self.space, self._is_child = space, True
        self.began_at = event.at
        path = image.executed.file.path if image.executed is not None else ""
        self._info = TargetInfo(self.pid, event.name, path)
        resolver = self._resolver = self._resolve(will_execute=True)
        if image.executed is not None:
            self._ending.executed(image.executed)
            resolver.executed(image.executed.file, image.executed.auxv, image.executed.at)
        for vma, at in image.mapped:
            self._ending.mapped(file_key(vma), vma, space, tracer)
            resolver.mapped(vma, at)
        if not self.target.exited:
            with suppress(CannotTrace):
                self.begin(tracer)
                self.began_at = event.at

    def tend(self, tracer: Tracer, crowded: bool, look: bool = True) -> bool:
        """As ``Watch.tend``; and read the books, which show joins and may be gone at the report."""
        looks_again = not self._ending.knows_libc or time.monotonic() >= self._peek_at
        if self._threads_only and self.begun and looks_again:
            self._code_at = time.monotonic_ns()  # nobody says when a library is loaded
        has_more = super().tend(tracer, crowded, look)
        if self.begun and time.monotonic() >= self._peek_at:
            self._peek_at = self._peek()
        return has_more

    def report(self, tracer: Tracer, ended_by: EndedBy, search: Searcher) -> Report:
        """Report what stands now, while the trace goes on.  Raises CannotTrace."""
        return self.judge(self.capture(tracer, ended_by), search)

    def capture(self, tracer: Tracer, ended_by: EndedBy) -> Captured:
        """Read all that a report needs the programs for.  Raises CannotTrace."""
        now = self._look(read_now)
        if self.ended_by is None:
            self._history.add(now.books, now.read_at, now.read_until)
        snapshot = tracer.read()[self.space]
        tracer.poll()  # holes and moves that concern the rows just read
        read_at = time.monotonic_ns()
        self._settle_doubts()
        final = self._final(snapshot)
        if final is not None:
            now = now._replace(books=final, books_read_at=None)
        if self._resolver is not None:
            self._stacks.work(self._resolver)
        give_back_memory()  # that reading and the stacks took; the mappings take more
        unexplained_areas: tuple[tuple[str, int], ...] = ()
        if self._threads_only:
            verified = Verified(thread_stacks(now.books, self._books, snapshot.runs), 0, 0)
        else:
            verified, unexplained_areas = self._standing(snapshot, now, tracer)
        attribution = Attribution(self._stacks)
        attribution.number(verified.mappings)
        outstanding = assign(
            verified.mappings, attribution.runs(snapshot.runs), snapshot.threads, snapshot.stands
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
        )

    def _standing(
        self, snapshot: Snapshot, now: Now, tracer: Tracer
    ) -> tuple[Verified, tuple[tuple[str, int], ...]]:
        """What stands by the calls that were seen, as far as /proc confirms it, and what no call explains."""
        standing = self._ledger.outstanding(snapshot.rows, snapshot.runs)
        snapshot.rows = no_rows()
        give_back_memory()
        if self.keeps_standing:
            self.standing = standing.copy()
        standing = as_shown(standing, now.vmas, PAGE)
        verified = self._verified(standing, now)
        if not verified.unexplained_bytes or self.ended_by is not None:
            return verified, ()
        least = self._unexplained(tracer, standing, now.vmas, verified.unexplained_bytes)
        areas = tuple(unexplained(standing, now.vmas)) if least else ()
        return verified._replace(unexplained_bytes=least), areas

    def judge(self, captured: Captured, search: Searcher) -> Report:
        """Judge what was captured.  Raises CannotTrace."""
        now, snapshot, attribution = captured.now, captured.snapshot, captured.attribution
        threads_now = self._live_threads()
        diagnosis = diagnose(
            Evidence(
                outstanding=captured.outstanding,
                books=now.books,
                vmas=now.vmas,
                tgid=self.pid,
                attached_at=self.began_at,
                report_at=self._ended_at or now.read_at,
                min_age=self._min_age,
                cores=os.cpu_count() or 1,
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
                earlier_books=self._books if self._books.state is BooksState.READ else None,
                target_exited_at=self._ended_at,
                books_read_at=now.books_read_at,
                history=self._history,
                search=partial(self._search, search, now),
                virt_growth=_growth(self._memory, now.memory),
                thread_growth=_difference(self._info.threads_start, threads_now),
                stack_shaped=self._stack_shaped(now),
                books_final=captured.is_final,
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
            losses=replace(report.losses, stacks=attribution.missing if self._wants_stacks else 0),
            unexplained_bytes=captured.unexplained_bytes,
            unexplained=captured.unexplained,
            phantom_bytes=captured.phantom_bytes,
            notes=(*report.notes, *diagnosis.notes),
            undecided=diagnosis.undecided + self._unlisted(captured),
            searched=diagnosis.search,
        )

    def _unlisted(self, captured: Captured) -> int:
        """Threads that exited, where neither their stacks were traced nor glibc's lists could be read."""
        if not self._threads_only or captured.now.books.state is BooksState.READ:
            return 0
        return sum(run.exited_at is not None for run in captured.snapshot.runs)

    def _final(self, snapshot: Snapshot) -> Optional[Books]:
        """The books of a target that has ended, if the kernel side could read them in its last moment."""
        at = self._ending.at
        if self.ended_by is None or at is None:
            return None
        self._ended_at = at
        # Who went later went with the process; an exec ends the other threads before it is told of.
        ran = [one for one in snapshot.threads.values() if one.exited_at is not None and one.exited_at >= at]
        snapshot.threads.update((one.id, replace(one, exited_at=None)) for one in ran)
        snapshot.runs = [
            run._replace(exited_at=None) if run.exited_at is not None and run.exited_at >= at else run
            for run in snapshot.runs
        ]
        earlier = self._books if self._books.state is BooksState.READ else None
        books = self._ending.final(snapshot.runs, snapshot.threads.values(), earlier)
        if books.state is not BooksState.READ and books.libc != "musl":
            self.note(f"the end was not judged: {books.why}")
            return None
        return books

    def live_state(self, tracer: Tracer, seconds_left: Optional[float]) -> LiveState:
        """The figures of this moment, straight from the kernel's rows."""
        snapshot = tracer.read()[self.space]
        rows = [whole_mapping(row) for row in snapshot.rows]
        orphans = [
            one.mapping.size
            for one in assign(rows, snapshot.runs, snapshot.threads, snapshot.stands)
            if one.owner is not None and not one.owner.alive
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
        self.code = file_mappings(vmas)
        self._ending.look(vmas, self.space, tracer)

    def _has_read_code(self, vmas: Vmas, tracer: Tracer) -> None:
        if self._threads_only and not self._ending.knows_libc:
            self._ending.look(vmas, self.space, tracer)

    def _meet(self, vmas: Vmas) -> None:
        super()._meet(vmas)
        name = Path(self._program).name
        if name and name != Path(self._info.exe.removesuffix(" (deleted)")).name:
            # It has executed another program since: that is told as such.
            self._info = replace(self._info, comm=name, exe=self._program)
        self._memory = read_memory_use(self.pid)
        self._arena_limit = arena_limit(read_environment(self.pid))

    def _peek(self) -> float:
        """Take in what glibc's books say; return when to do it again, as ``time.monotonic`` counts."""
        began = time.thread_time()
        with suppress(CannotTrace):
            now = self._look(read_lists)
            if self.ended_by is None and now.books.state is BooksState.READ:
                self._history.add(now.books, now.read_at, now.read_until)
                self._last = now._replace(vmas=Vmas())
        used = time.thread_time() - began
        return time.monotonic() + max(_PEEK_SECONDS, used / _PEEK_SHARE)

    def _search(self, search: Searcher, now: Now, suspects: Sequence[Suspect]) -> Search:
        """Search the target; one that ends meanwhile was not searched."""
        try:
            frames_of = None if self._resolver is None else self._resolver.frames_of
            return search(self.pid, suspects, now.books, now.groups, frames_of)
        except ProcessGone:
            self._end(EndedBy.TARGET_EXIT, time.monotonic_ns())
            return replace(NOT_SEARCHED, gaps=("the process ended before its memory was searched",))

    def _stack_shaped(self, now: Now) -> list[Interval]:
        """Areas that look like stacks and have no thread, where no lists say whose they are."""
        if now.books.state is not BooksState.ABSENT or self.ended_by is not None:
            return []
        try:
            threads = read_live_threads(self.pid, now.groups)
        except ProcessGone:
            return []
        areas, _ = dissect(Sight(now.vmas, now.books, threads))
        return stacks_without_thread(now.books, areas)

    def _live_threads(self) -> Optional[int]:
        if self.ended_by is not None:
            return None
        try:
            return live_threads(self.pid)
        except ProcessGone:
            return None

    def _name_of(self, address: int) -> Optional[Frame]:
        return None if self._resolver is None else self._resolver.name_address(address)

    def _look(self, read: Callable[[int], Now]) -> Now:
        """Read what is so now, by ``read``; of a target that is gone, nothing."""
        if self.ended_by is None:
            began = time.monotonic_ns()
            try:
                return read(self.pid)
            except ProcessGone:
                self._end(EndedBy.TARGET_EXIT, began)
        return nothing_now(self._last)

    def _verified(self, mappings: list[Mapping], now: Now) -> Verified:
        if self.ended_by is None:
            return verify(mappings, now.vmas, now.read_at)
        self.note(
            "the target has exited: its mappings are those of the traced calls, and /proc cannot confirm them"
        )
        return Verified(mappings, 0, 0)

    def _unexplained(self, tracer: Tracer, mappings: list[Mapping], shown: Vmas, least: int) -> int:
        """Bytes that no reading explains: each has what came or went between /proc and the rows for some.

        /proc is held against the rows that were read before it, then against those read after it.
        ``mappings`` are of the rows read last, ``least`` is what those leave unexplained; ``shown`` says how
        large the kernel made them.
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
