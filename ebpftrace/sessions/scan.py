# SPDX-License-Identifier: Apache-2.0
"""Runs ``scan``: read every process of the host without tracing, and more of those that may leak."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, Optional

from ebpftrace.classify import attention, rank_candidates
from ebpftrace.classify.host_scan import HostScan
from ebpftrace.classify.meminfo import HostMemory
from ebpftrace.classify.ranking import ProcessStats, expected_gain, shape_of
from ebpftrace.diagnosis import History, baseline_verdict
from ebpftrace.diagnosis.evidence import no_name_of
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Search, Suspect, ThreadLists
from ebpftrace.nptl import read_thread_lists
from ebpftrace.own_process import collector_off
from ebpftrace.procfs.access import ProcessGone, others_are_hidden, process_ids
from ebpftrace.procfs.hostmemory import read_meminfo
from ebpftrace.procfs.malloc import find_heaps, guess_heaps
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.memory import Memory
from ebpftrace.procfs.sharing import same_address_space
from ebpftrace.procfs.status import known_max_map_count, read_memory_use
from ebpftrace.procfs.tasks import read_task
from ebpftrace.sessions.interrupts import Interrupts, readable
from ebpftrace.sessions.searching import MemorySearcher, Searcher, no_searcher
from ebpftrace.vmas import Vmas

_SECONDS_OF_MAPS = 0.9
"""CPU time for reading mappings, largest VIRT first; of the other processes only the size is known.

CPU time, because with wall time a busy host would get a poorer report.
"""
_SECONDS_OF_LISTS = 0.6
_SECONDS_OF_SEARCH = 0.6
"""CPU time for searching the memory of processes with exited threads: that of the smallest first."""
_MANY = 10_000
"""Stacks from which on a process comes last, or it would take the time that there is for all others."""
_JOIN_SECONDS = 0.25
"""Exited threads are read again after this time: most threads are joined soon after their exit."""


def run(seconds: Optional[float]) -> HostScan:
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
    with collector_off():
        reader.read_shapes()
        reader.read_thread_lists()
        reader.confirm()
        reader.judge()
    figures = _with_growth(reader.figures.values(), {} if earlier is None else earlier.figures)
    return HostScan(
        taken_at=time.time_ns(),
        seconds=sizes.at - earlier.at if earlier is not None else None,
        candidates=rank_candidates(figures, known_max_map_count()),
        kernel_threads=sizes.kernel_threads,
        zombies=sizes.zombies,
        vanished=sizes.vanished + reader.vanished,
        unreadable=reader.unreadable,
        not_looked=reader.not_looked,
        lists_unread=reader.lists_unread,
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
    figures: Mapping[int, ProcessStats]
    kernel_threads: int
    zombies: int
    vanished: int


def read_sizes() -> Sizes:
    """Read the sizes of all processes of the host.  Raises CannotTrace if /proc cannot be read."""
    at = time.monotonic()
    figures: dict[int, ProcessStats] = {}
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
                figures[pid] = ProcessStats(pid, task.name, threads, use.virt, use.rss, task.id.started_at)
            vanished -= 1
    return Sizes(at, figures, kernel_threads, zombies, vanished)


def _with_growth(figures: Iterable[ProcessStats], earlier: Mapping[int, ProcessStats]) -> list[ProcessStats]:
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
    """Reads more of the processes, within a budget of CPU time."""

    def __init__(self, sizes: Sizes) -> None:
        self.figures = dict(sizes.figures)
        self.vanished = 0
        self.unreadable = 0
        self.not_looked = 0
        self.lists_unread = 0
        self.unsearched = 0
        self._vmas: dict[int, Vmas] = {}
        self._kept: dict[int, _Kept] = {}

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

    def _read_shape(self, figures: ProcessStats) -> None:
        try:
            vmas = read_maps(figures.pid)
        except ProcessGone:
            raise
        except CannotTrace:
            self.unreadable += 1
            return
        examined = replace(figures, shape=shape_of(vmas, len(guess_heaps(vmas))))
        self.figures[figures.pid] = examined
        if expected_gain(examined):
            self._vmas[figures.pid] = vmas

    def read_thread_lists(self) -> None:
        """Read glibc's thread lists where they may prove something, the most promising first."""
        until = time.process_time() + _SECONDS_OF_LISTS

        def turn(pid: int) -> tuple[bool, int]:
            figures = self.figures[pid]
            stacks = figures.shape.stacks.number if figures.shape is not None else 0
            return stacks >= _MANY, -expected_gain(figures)

        for pid in sorted(self._vmas, key=turn):
            if time.process_time() >= until:
                self.lists_unread += 1
                continue
            self._read_thread_lists(pid, self._vmas[pid], None)

    def confirm(self) -> None:
        """Read the exited threads again a little later: those that are gone were joined."""
        if self._kept:
            time.sleep(_JOIN_SECONDS)
        for pid, kept in list(self._kept.items()):
            self._read_thread_lists(pid, None, kept)

    def judge(self) -> None:
        """Judge the exited threads that are left, as ``mmap-leaks -d 0`` does."""
        until = time.process_time() + _SECONDS_OF_SEARCH

        def turn(pid: int) -> tuple[bool, int]:
            return self.figures[pid].exited >= _MANY, self.figures[pid].rss

        for pid in sorted(self._kept, key=turn):
            kept = self._kept[pid]
            left = until - time.process_time()
            search = MemorySearcher(cpu_seconds=left) if left > 0 else no_searcher
            self.unsearched += left <= 0
            try:
                self.figures[pid] = _judged(self.figures[pid], kept, search)
            except CannotTrace:
                del self.figures[pid]
                self.vanished += 1

    def _read_thread_lists(self, pid: int, vmas: Optional[Vmas], before: Optional[_Kept]) -> None:
        self._kept.pop(pid, None)
        try:
            self.figures[pid], kept = _with_lists(self.figures[pid], vmas or read_maps(pid), before)
        except ProcessGone:
            del self.figures[pid]
            self.vanished += 1
        except CannotTrace:
            self.lists_unread += 1
            # What was read before, if anything, nobody has confirmed.
            self.figures[pid] = replace(self.figures[pid], thread_lists=None, exited=0, exited_size=0)
        else:
            if self.figures[pid].exited:
                self._kept[pid] = kept


class _Kept(NamedTuple):
    """What was read of a process with exited threads that nobody had joined."""

    vmas: Vmas
    thread_lists: ThreadLists
    earlier: Optional[ThreadLists]
    history: History


def _judged(figures: ProcessStats, kept: _Kept, search: Searcher) -> ProcessStats:
    """Add how many of the exited threads are leaks, or may be."""

    def searched(suspects: Sequence[Suspect]) -> Search:
        groups = same_address_space(figures.pid).tgids
        return search(figures.pid, suspects, kept.thread_lists, groups, None)

    findings = baseline_verdict(
        kept.thread_lists, kept.vmas, no_name_of, kept.earlier, searched, kept.history
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


def _with_lists(figures: ProcessStats, vmas: Vmas, before: Optional[_Kept]) -> tuple[ProcessStats, _Kept]:
    """Add the exited threads on glibc's lists, only those that were on the lists ``before`` too."""
    read_at = time.monotonic_ns()
    with Memory(figures.pid) as memory:
        earlier = before.thread_lists if before is not None else None
        thread_lists = read_thread_lists(figures.pid, vmas, memory, earlier=earlier)
        read_until = time.monotonic_ns()
        heaps = find_heaps(vmas, memory) if "glibc" in thread_lists.libc else []
    history = before.history if before is not None else History()
    history.add(thread_lists, read_at, read_until)
    unjoined = (
        None
        if before is None
        else {thread.descriptor for thread in before.thread_lists.threads if thread.exited}
    )
    exited = [
        thread
        for thread in thread_lists.threads
        if thread.exited and (unjoined is None or thread.descriptor in unjoined)
    ]
    kept = _Kept(vmas, thread_lists, earlier, history)
    examined = replace(
        figures,
        thread_lists=thread_lists.state,
        exited=len(exited),
        exited_size=sum(thread.stack.size for thread in exited if thread.stack is not None),
        arenas=sum(heap.first for heap in heaps),
    )
    return examined, kept
