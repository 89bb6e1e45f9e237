# SPDX-License-Identifier: Apache-2.0
"""Runs ``maps``: read an address space without tracing, classify it, and read it again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Callable, NamedTuple, Optional

from ebpftrace.classify import classify, compare
from ebpftrace.classify.known_ranges import stacks_without_thread
from ebpftrace.classify.maps_report import MapsReport
from ebpftrace.classify.model import Area, Kind, Reading
from ebpftrace.diagnosis import History, baseline_verdict
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Frame, Heap, Interval, ReadState, ThreadLists
from ebpftrace.nptl import read_thread_lists
from ebpftrace.own_process import collector_off
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.livethreads import read_live_threads
from ebpftrace.procfs.malloc import find_blocks, find_heaps, guess_heaps
from ebpftrace.procfs.maps import read_smaps
from ebpftrace.procfs.memory import Memory
from ebpftrace.procfs.sharing import same_address_space
from ebpftrace.procfs.status import known_max_map_count, read_cores, read_memory_use, read_target_info
from ebpftrace.procfs.target import Target, open_target
from ebpftrace.sessions.interrupts import Interrupts, readable
from ebpftrace.sessions.searching import MemorySearcher, Searcher
from ebpftrace.unwind.copies import StackCopy
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver
from ebpftrace.vmas import Vmas

_SEARCHER = MemorySearcher()
_MAX_ROUTINES = 64
"""Start routines that are named: programs have few."""


def run(
    pid: int,
    every: Optional[float],
    count: Optional[int],
    show: Callable[[MapsReport], None],
    search: Searcher = _SEARCHER,
    debuginfod: bool = False,
) -> None:
    """Look at process ``pid``, ``count`` times, ``every`` seconds (None: once), and ``show`` each look.

    ``debuginfod``: ask its servers for debug information that is not on this host.  Ends early with the
    process, or by a signal.  Raises CannotTrace.
    """
    with ExitStack() as held:
        target = held.enter_context(open_target(pid))
        names = held.enter_context(_Names(pid, debuginfod))
        history = History()
        due = time.monotonic()
        with collector_off():
            classified = _look(target, names, None, history, search)
        if every is None:
            show(classified.look)
            return
        # Before this, a signal ends the program: nothing was seen.  After it, the status is that of success.
        interrupts = held.enter_context(Interrupts())
        show(classified.look)
        taken = 1
        while taken != count:
            due += every
            if _wait(target, interrupts, due):
                if interrupts.received:
                    return
                raise CannotTrace(f"process {pid} has exited after {_looks(taken)}")
            try:
                with collector_off(), interrupts.at_once():
                    classified = _look(target, names, classified, history, search)
            except ProcessGone:
                raise CannotTrace(f"process {pid} has exited after {_looks(taken)}") from None
            except KeyboardInterrupt:
                if not interrupts.received:
                    raise
                return
            show(classified.look)
            taken += 1


def _looks(number: int) -> str:
    return "1 report" if number == 1 else f"{number} reports"


def _wait(target: Target, interrupts: Interrupts, due: float) -> bool:
    """Whether the process ended or a signal came before it was time for the next look."""
    return bool(readable([target.fileno(), interrupts.fileno()], due - time.monotonic()))


class _Classified(NamedTuple):
    look: MapsReport
    at: float


def _look(
    target: Target, names: _Names, before: Optional[_Classified], history: History, search: Searcher
) -> _Classified:
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
    reading = Reading(vmas, inside.thread_lists, threads, inside.heaps, inside.blocks)
    areas, more_notes = classify(reading)
    history.add(inside.thread_lists, read_at, read_until)
    diagnosis = baseline_verdict(
        inside.thread_lists,
        vmas if isinstance(vmas, Vmas) else Vmas(vmas),
        names.name,
        search=lambda suspects: search(pid, suspects, inside.thread_lists, groups, names.frames_of),
        history=history,
        stack_shaped=stacks_without_thread(inside.thread_lists, areas),
    )
    seconds = at - before.at if before is not None else 0.0
    growth = compare(before.look.areas, areas, seconds) if before is not None else None
    routines = names.routines(areas)
    look = MapsReport(
        target=info,
        taken_at=taken_at,
        virt=memory_use.virt,
        rss=memory_use.rss,
        vma_count=len(vmas),
        max_vma_count=known_max_map_count(),
        thread_lists=inside.thread_lists,
        areas=tuple(areas),
        arenas=sum(heap.first for heap in inside.heaps),
        cores=read_cores(pid),
        findings=diagnosis.findings,
        routines=routines,
        notes=tuple(dict.fromkeys((*notes, *more_notes, *diagnosis.notes, *names.notes()))),
        growth=growth,
    )
    return _Classified(look, at)


def _groups(pid: int, notes: list[str]) -> Sequence[int]:
    sharers = same_address_space(pid)
    if len(sharers.tgids) > 1:
        others = ", ".join(map(str, sharers.tgids[1:]))
        notes.append(f"shares its address space with other processes: {others}")
    return sharers.tgids


class _Inside(NamedTuple):
    """What was read from the memory of the process."""

    thread_lists: ThreadLists
    heaps: Sequence[Heap]
    blocks: Sequence[Interval]


def _read_inside(pid: int, vmas: Vmas, groups: Sequence[int], notes: list[str]) -> _Inside:
    try:
        memory = Memory(pid)
    except ProcessGone:
        raise
    except CannotTrace as refusal:
        notes.append(f"{refusal}: stacks and heaps of malloc are classed by shape alone")
        return _Inside(ThreadLists(ReadState.ABSENT, refusal.what), guess_heaps(vmas), ())
    with memory:
        thread_lists = read_thread_lists(pid, vmas, memory, groups)
        if thread_lists.state is not ReadState.READ or thread_lists.why:
            notes.append(f"glibc's thread lists: {thread_lists.why}")
        if not _has_glibc(thread_lists):
            return _Inside(thread_lists, (), ())
        heaps = find_heaps(vmas, memory)
        stacks = [thread.stack for thread in thread_lists.threads if thread.stack is not None]
        taken = [*stacks, *thread_lists.stack_cache, *(Interval(heap.start, heap.end) for heap in heaps)]
        return _Inside(thread_lists, heaps, find_blocks(vmas, memory, sorted(taken)))


def _has_glibc(thread_lists: ThreadLists) -> bool:
    return "glibc" in thread_lists.libc


class _Names:
    """Names start routines; begins to read files only when there is one to name.  A context manager."""

    def __init__(self, pid: int, debuginfod: bool) -> None:
        """Raises CannotTrace if ``debuginfod`` can't be asked."""
        self._pid = pid
        self._held = ExitStack()
        self._engine = self._held.enter_context(Engine(debuginfod=debuginfod))
        self._resolver: Optional[StackResolver] = None

    def __enter__(self) -> _Names:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def routines(self, areas: Iterable[Area]) -> dict[int, Frame]:
        """The functions that the exited threads of these areas ran."""
        routines = {area.start_routine for area in areas if area.kind is Kind.ORPHANED_STACK}
        named = ((address, self.name(address)) for address in sorted(routines)[:_MAX_ROUTINES])
        return {address: frame for address, frame in named if frame is not None}

    def name(self, address: int) -> Optional[Frame]:
        """The function at an address."""
        return self._resolve().name_address(address)

    def frames_of(self, copy: StackCopy, offsets: Sequence[int]) -> dict[int, Frame]:
        """As ``StackResolver.frames_of``."""
        return self._resolve().frames_of(copy, offsets)

    def notes(self) -> list[str]:
        """Why functions have no names, and what would name them."""
        return [] if self._resolver is None else self._resolver.stack_warnings.notes()

    def _resolve(self) -> StackResolver:
        if self._resolver is None:
            self._resolver = self._held.enter_context(StackResolver(self._pid, self._engine))
        return self._resolver
