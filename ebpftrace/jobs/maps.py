# SPDX-License-Identifier: Apache-2.0
"""``maps``, told once: look at an address space without tracing, say what it is made of, and look again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Callable, NamedTuple, Optional

from ebpftrace.anatomy import compare, dissect
from ebpftrace.anatomy.areas import Area, Kind, Sight
from ebpftrace.anatomy.claims import stacks_without_thread
from ebpftrace.anatomy.look import Look
from ebpftrace.diagnosis import History, baseline_verdict
from ebpftrace.errors import CannotTrace
from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.jobs.searching import MemorySearcher, Searcher
from ebpftrace.jobs.waiting import readable
from ebpftrace.model import Books, BooksState, Frame, Heap, Interval
from ebpftrace.process.books import read_books
from ebpftrace.process.livethreads import read_live_threads
from ebpftrace.process.malloc import find_blocks, find_heaps, guess_heaps
from ebpftrace.process.maps import read_smaps
from ebpftrace.process.memory import Memory
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.sharing import same_address_space
from ebpftrace.process.status import known_max_map_count, read_memory_use, read_target_info
from ebpftrace.process.target import Target, open_target
from ebpftrace.stacks.copies import StackCopy
from ebpftrace.stacks.engine import Engine
from ebpftrace.stacks.resolve import StackResolver
from ebpftrace.vmas import Vmas

_SEARCHER = MemorySearcher()
_MOST_ROUTINES = 64
"""Start routines that are named: programs have few."""


def run(
    pid: int,
    every: Optional[float],
    count: Optional[int],
    tell: Callable[[Look], None],
    search: Searcher = _SEARCHER,
) -> None:
    """Look at process ``pid``, ``count`` times, ``every`` seconds (None: once), and ``tell`` each look.

    Ends early with the process, or by a signal.  Raises CannotTrace.
    """
    with ExitStack() as held:
        target = held.enter_context(open_target(pid))
        names = held.enter_context(_Names(pid))
        interrupts = held.enter_context(Interrupts())
        history = History()
        before: Optional[_Dissected] = None
        taken = 0
        due = time.monotonic()
        while True:
            try:
                dissected = _look(target, names, before, history, search)
            except ProcessGone:
                if before is None:
                    raise
                raise CannotTrace(f"process {pid} has exited after {_looks(taken)}") from None
            tell(dissected.look)
            taken += 1
            before = dissected
            if every is None or taken == count:
                return
            due += every
            if _wait(target, interrupts, due):
                if interrupts.received:
                    return
                raise CannotTrace(f"process {pid} has exited after {_looks(taken)}")


def _looks(number: int) -> str:
    return "1 report" if number == 1 else f"{number} reports"


def _wait(target: Target, interrupts: Interrupts, due: float) -> bool:
    """Whether the process ended or a signal came before it was time for the next look."""
    return bool(readable([target.fileno(), interrupts.fileno()], due - time.monotonic()))


class _Dissected(NamedTuple):
    look: Look
    at: float


def _look(
    target: Target, names: _Names, before: Optional[_Dissected], history: History, search: Searcher
) -> _Dissected:
    pid = target.pid
    notes: list[str] = []
    info = read_target_info(pid)
    at, taken_at, read_at = time.monotonic(), time.time_ns(), time.monotonic_ns()
    memory_use = read_memory_use(pid)
    vmas = read_smaps(pid)
    groups = _groups(pid, notes)
    inside = _read_inside(pid, vmas, groups, notes)
    read_until = time.monotonic_ns()
    threads = read_live_threads(pid, groups)
    sight = Sight(vmas, inside.books, threads, inside.heaps, inside.blocks)
    areas, more_notes = dissect(sight)
    history.add(inside.books, read_at, read_until)
    diagnosis = baseline_verdict(
        inside.books,
        vmas if isinstance(vmas, Vmas) else Vmas(vmas),
        names.name,
        search=lambda suspects: search(pid, suspects, inside.books, groups, names.frames_of),
        history=history,
        stack_shaped=stacks_without_thread(inside.books, areas),
    )
    seconds = at - before.at if before is not None else 0.0
    growth = compare(before.look.areas, areas, seconds) if before is not None else None
    look = Look(
        target=info,
        taken_at=taken_at,
        virt=memory_use.virt,
        rss=memory_use.rss,
        vma_count=len(vmas),
        max_vma_count=known_max_map_count(),
        books=inside.books,
        areas=tuple(areas),
        arenas=sum(heap.first for heap in inside.heaps),
        cores=os.cpu_count() or 1,
        findings=diagnosis.findings,
        routines=names.routines(areas),
        notes=tuple(dict.fromkeys((*notes, *more_notes, *diagnosis.notes))),
        growth=growth,
    )
    return _Dissected(look, at)


def _groups(pid: int, notes: list[str]) -> Sequence[int]:
    sharers = same_address_space(pid)
    if len(sharers.tgids) > 1:
        others = ", ".join(map(str, sharers.tgids[1:]))
        notes.append(f"shares its address space with other processes: {others}")
    return sharers.tgids


class _Inside(NamedTuple):
    """What the memory of the process told."""

    books: Books
    heaps: Sequence[Heap]
    blocks: Sequence[Interval]


def _read_inside(pid: int, vmas: Vmas, groups: Sequence[int], notes: list[str]) -> _Inside:
    try:
        memory = Memory(pid)
    except ProcessGone:
        raise
    except CannotTrace as refusal:
        notes.append(f"{refusal}: stacks and heaps of malloc are classed by shape alone")
        return _Inside(Books(BooksState.ABSENT, refusal.what), guess_heaps(vmas), ())
    with memory:
        books = read_books(pid, vmas, memory, groups)
        if books.state is not BooksState.READ or books.why:
            notes.append(f"glibc's thread lists: {books.why}")
        if not _has_glibc(books):
            return _Inside(books, (), ())
        heaps = find_heaps(vmas, memory)
        stacks = [thread.stack for thread in books.threads if thread.stack is not None]
        taken = [*stacks, *books.stack_cache, *(Interval(heap.start, heap.end) for heap in heaps)]
        return _Inside(books, heaps, find_blocks(vmas, memory, sorted(taken)))


def _has_glibc(books: Books) -> bool:
    return "glibc" in books.libc


class _Names:
    """Names start routines; begins to read files only when there is one to name.  A context manager."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._held = ExitStack()
        self._resolver: Optional[StackResolver] = None

    def __enter__(self) -> _Names:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def routines(self, areas: Iterable[Area]) -> dict[int, Frame]:
        """The functions that the exited threads of these areas ran."""
        routines = {area.start_routine for area in areas if area.kind is Kind.ORPHANED_STACK}
        named = ((address, self.name(address)) for address in sorted(routines)[:_MOST_ROUTINES])
        return {address: frame for address, frame in named if frame is not None}

    def name(self, address: int) -> Optional[Frame]:
        """The function at an address."""
        return self._resolve().name_address(address)

    def frames_of(self, copy: StackCopy, offsets: Sequence[int]) -> dict[int, Frame]:
        """As ``StackResolver.frames_of``."""
        return self._resolve().frames_of(copy, offsets)

    def _resolve(self) -> StackResolver:
        if self._resolver is None:
            engine = self._held.enter_context(Engine())
            self._resolver = self._held.enter_context(StackResolver(self._pid, engine))
        return self._resolver
