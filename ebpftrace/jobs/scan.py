# SPDX-License-Identifier: Apache-2.0
"""``scan``, told once: look at every process of the host without tracing, closer at those that need it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, Optional

from ebpftrace.anatomy import attention, suspect
from ebpftrace.anatomy.census import Census
from ebpftrace.anatomy.host import HostMemory
from ebpftrace.anatomy.suspicion import Figures, promise, shape_of
from ebpftrace.diagnosis import History, baseline_verdict
from ebpftrace.diagnosis.evidence import no_name_of
from ebpftrace.errors import CannotTrace
from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.jobs.searching import MemorySearcher, Searcher, no_searcher
from ebpftrace.jobs.waiting import readable
from ebpftrace.model import Books, Search, Suspect
from ebpftrace.process.books import read_books
from ebpftrace.process.hostmemory import read_meminfo
from ebpftrace.process.malloc import find_heaps, guess_heaps
from ebpftrace.process.maps import read_maps
from ebpftrace.process.memory import Memory
from ebpftrace.process.procfs import ProcessGone, others_are_hidden, process_ids
from ebpftrace.process.sharing import same_address_space
from ebpftrace.process.status import known_max_map_count, read_memory_use
from ebpftrace.process.tasks import read_task
from ebpftrace.vmas import Vmas

_SECONDS_OF_MAPS = 0.9
"""Of our CPU, for reading mappings, largest VIRT first: what is left then is told by size alone.

Not of the clock: a busy host would get a poorer report.
"""
_SECONDS_OF_BOOKS = 0.6
_SECONDS_OF_SEARCH = 0.6
"""Of our CPU, for searching the memory of those with exited threads, most of them first."""
_JOIN_SECONDS = 0.25
"""Who has exited is looked at again so much later: most that are joined at all are joined at once."""


def run(seconds: Optional[float]) -> Census:
    """Scan the host, ``seconds`` after a first short look where growth is asked for.

    A signal ends the wait early.  Raises CannotTrace where /proc cannot be read.
    """
    began = time.monotonic()
    earlier: Optional[Sizes] = None
    waited = 0.0
    if seconds is not None:
        earlier = read_sizes()
        waited = _wait(seconds)
    sizes = read_sizes()
    reader = Reader(sizes)
    reader.read_shapes()
    reader.read_books()
    reader.confirm()
    reader.judge()
    figures = _with_growth(reader.figures.values(), {} if earlier is None else earlier.figures)
    return Census(
        taken_at=time.time_ns(),
        seconds=sizes.at - earlier.at if earlier is not None else None,
        suspects=suspect(figures, known_max_map_count()),
        kernel_threads=sizes.kernel_threads,
        zombies=sizes.zombies,
        vanished=sizes.vanished + reader.vanished,
        unreadable=reader.unreadable,
        not_looked=reader.not_looked,
        books_unread=reader.books_unread,
        unsearched=reader.unsearched,
        memory=_host_memory(),
        took=time.monotonic() - began - waited,
        hidden=others_are_hidden(),
    )


def _host_memory() -> HostMemory:
    try:
        return attention(read_meminfo())
    except CannotTrace:
        return attention({})


def _wait(seconds: float) -> float:
    began = time.monotonic()
    with Interrupts() as interrupts:
        readable([interrupts.fileno()], seconds)
    return time.monotonic() - began


class Sizes(NamedTuple):
    """The sizes of all processes, as anyone may read them."""

    at: float
    figures: Mapping[int, Figures]
    kernel_threads: int
    zombies: int
    vanished: int


def read_sizes() -> Sizes:
    """Look at every process of the host for a moment.  Raises CannotTrace where /proc cannot be read."""
    at = time.monotonic()
    figures: dict[int, Figures] = {}
    kernel_threads = zombies = vanished = 0
    for pid in process_ids():
        vanished += 1
        with suppress(ProcessGone):
            task = read_task(pid, pid)
            if task.kernel_thread:
                kernel_threads += 1
            elif task.exited and task.group_size <= 1:
                zombies += 1
            else:
                use = read_memory_use(pid)
                threads = task.group_size - task.exited
                figures[pid] = Figures(pid, task.name, threads, use.virt, use.rss, task.id.born)
            vanished -= 1
    return Sizes(at, figures, kernel_threads, zombies, vanished)


def _with_growth(figures: Iterable[Figures], earlier: Mapping[int, Figures]) -> list[Figures]:
    grown = []
    for now in figures:
        then = earlier.get(now.pid)
        if then is not None and then.started == now.started:
            now = replace(
                now,
                virt_growth=now.virt - then.virt,
                rss_growth=now.rss - then.rss,
                thread_growth=now.threads - then.threads,
            )
        grown.append(now)
    return grown


class Reader:
    """Looks closer at the processes, within a budget of time."""

    def __init__(self, sizes: Sizes) -> None:
        self.figures = dict(sizes.figures)
        self.vanished = 0
        self.unreadable = 0
        self.not_looked = 0
        self.books_unread = 0
        self.unsearched = 0
        self._vmas: dict[int, Vmas] = {}
        self._standing: dict[int, _Standing] = {}

    def read_shapes(self) -> None:
        """Read the mappings: those with most untouched address space first."""
        until = time.process_time() + _SECONDS_OF_MAPS
        ordered = sorted(self.figures.values(), key=lambda one: one.virt - one.rss, reverse=True)
        for figures in ordered:
            if time.process_time() >= until:
                self.not_looked += 1
                continue
            with suppress(ProcessGone):
                self._read_shape(figures)
                continue
            del self.figures[figures.pid]
            self.vanished += 1

    def _read_shape(self, figures: Figures) -> None:
        try:
            vmas = read_maps(figures.pid)
        except ProcessGone:
            raise
        except CannotTrace:
            self.unreadable += 1
            return
        looked = replace(figures, shape=shape_of(vmas, len(guess_heaps(vmas))))
        self.figures[figures.pid] = looked
        if promise(looked):
            self._vmas[figures.pid] = vmas

    def read_books(self) -> None:
        """Read glibc's books where they may prove something, the most promising first."""
        until = time.process_time() + _SECONDS_OF_BOOKS
        for pid in sorted(self._vmas, key=lambda pid: promise(self.figures[pid]), reverse=True):
            if time.process_time() >= until:
                self.books_unread += 1
                continue
            self._read_books(pid, self._vmas[pid], None)

    def confirm(self) -> None:
        """Look a little later who of the exited is still there: the others were joined."""
        if self._standing:
            time.sleep(_JOIN_SECONDS)
        for pid, standing in list(self._standing.items()):
            self._read_books(pid, None, standing)

    def judge(self) -> None:
        """Judge those that still stand as ``mmap-leaks -d 0`` does."""
        until = time.process_time() + _SECONDS_OF_SEARCH
        for pid, standing in sorted(
            self._standing.items(), key=lambda item: self.figures[item[0]].exited, reverse=True
        ):
            left = until - time.process_time()
            search = MemorySearcher(cpu_seconds=left) if left > 0 else no_searcher
            self.unsearched += left <= 0
            try:
                self.figures[pid] = _judged(self.figures[pid], standing, search)
            except CannotTrace:
                del self.figures[pid]
                self.vanished += 1

    def _read_books(self, pid: int, vmas: Optional[Vmas], before: Optional[_Standing]) -> None:
        self._standing.pop(pid, None)
        try:
            self.figures[pid], standing = _with_books(self.figures[pid], vmas or read_maps(pid), before)
        except ProcessGone:
            del self.figures[pid]
            self.vanished += 1
        except CannotTrace:
            self.books_unread += 1
            # What was read before, if anything, nobody has confirmed.
            self.figures[pid] = replace(self.figures[pid], books=None, exited=0, exited_size=0)
        else:
            if self.figures[pid].exited:
                self._standing[pid] = standing


class _Standing(NamedTuple):
    """What was read of a process with exited threads that nobody had joined."""

    vmas: Vmas
    books: Books
    earlier: Optional[Books]
    history: History


def _judged(figures: Figures, standing: _Standing, search: Searcher) -> Figures:
    """With how many of the exited threads are leaks, or may be."""

    def searched(suspects: Sequence[Suspect]) -> Search:
        groups = same_address_space(figures.pid).tgids
        return search(figures.pid, suspects, standing.books, groups, None)

    findings = baseline_verdict(
        standing.books, standing.vmas, no_name_of, standing.earlier, searched, standing.history
    ).findings
    leaks = [finding for finding in findings if finding.leak]
    undecided = [finding for finding in findings if finding.undecided]
    return replace(
        figures,
        leaked=sum(finding.count for finding in leaks),
        leaked_size=sum(finding.size for finding in leaks),
        undecided=sum(finding.count for finding in undecided),
        undecided_size=sum(finding.size for finding in undecided),
    )


def _with_books(figures: Figures, vmas: Vmas, before: Optional[_Standing]) -> tuple[Figures, _Standing]:
    """With what glibc's thread lists say, of those only that stood ``before`` too."""
    read_at = time.monotonic_ns()
    with Memory(figures.pid) as memory:
        books = read_books(figures.pid, vmas, memory)
        read_until = time.monotonic_ns()
        heaps = find_heaps(vmas, memory) if "glibc" in books.libc else []
    history = before.history if before is not None else History()
    history.add(books, read_at, read_until)
    stood = (
        None if before is None else {thread.descriptor for thread in before.books.threads if thread.exited}
    )
    exited = [
        thread for thread in books.threads if thread.exited and (stood is None or thread.descriptor in stood)
    ]
    standing = _Standing(vmas, books, before.books if before is not None else None, history)
    looked = replace(
        figures,
        books=books.state,
        exited=len(exited),
        exited_size=sum(thread.stack.size for thread in exited if thread.stack is not None),
        arenas=sum(heap.first for heap in heaps),
    )
    return looked, standing
