# SPDX-License-Identifier: Apache-2.0
"""Ranges of an address space whose use is known by evidence, whatever VMAs they consist of.

The evidence is glibc's thread lists, live stack pointers and malloc's own headers.  The kernel merges
neighbouring mappings and splits a mapping by permissions, so a stack or a heap is rarely one VMA.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple, Optional

from ebpftrace.classify.model import Area, Kind, Reading
from ebpftrace.model import Interval, ListedThread, LiveThread, ReadState, ThreadLists, Vma

MAX_GUARD = 1 << 20
"""Limit of bytes for a guard; larger inaccessible memory is a reservation.  glibc's default is 4 KiB, the
guard zones of Java take up to 100 KiB."""
MAX_UNGUARDED_STACK = 1 << 20
"""Limit of bytes for a stack without a guard that only a stack pointer shows, because runtimes such as Go's
run threads on pieces of their heap."""
_MAIN_STACK = "[stack]"
BARE_EXIT = "detached, ended by a bare exit system call"
"""Note for an orphaned stack whose thread did not have to be joined."""


class KnownRange(NamedTuple):
    """A range with one use."""

    start: int
    end: int
    kind: Kind
    tid: Optional[int] = None
    thread: str = ""
    start_routine: int = 0
    note: str = ""


class KnownRanges:
    """Disjoint ranges; of two that overlap only the first is kept, so add the best evidence first."""

    def __init__(self) -> None:
        self._ranges: list[KnownRange] = []
        self._starts: list[int] = []

    def add(self, range_: KnownRange) -> None:
        """Add a range, unless it overlaps one that was added before."""
        at = bisect_right(self._starts, range_.start)
        if range_.start >= range_.end:
            return
        if at and self._ranges[at - 1].end > range_.start:
            return
        if at < len(self._starts) and self._starts[at] < range_.end:
            return
        self._starts.insert(at, range_.start)
        self._ranges.insert(at, range_)

    def contains(self, address: int) -> bool:
        """Whether the address is in one of the ranges."""
        at = bisect_right(self._starts, address)
        return bool(at) and self._ranges[at - 1].end > address

    def sorted(self) -> list[KnownRange]:
        """All ranges, ascending."""
        return list(self._ranges)


def known_ranges(reading: Reading) -> tuple[list[KnownRange], list[str]]:
    """The ranges that the evidence of one reading shows, ascending and disjoint, and notes on its gaps."""
    ranges = KnownRanges()
    notes = _add_listed(ranges, reading)
    for heap in reading.heaps:
        note = "" if heap.first else "further heap of an arena"
        ranges.add(KnownRange(heap.start, heap.end, Kind.MALLOC_ARENA, note=note))
    notes += _add_by_pointer(ranges, reading)
    for block in reading.blocks:
        ranges.add(KnownRange(block.start, block.end, Kind.MALLOC_BLOCK))
    return ranges.sorted(), notes


def _add_listed(ranges: KnownRanges, reading: Reading) -> list[str]:
    thread_lists = reading.thread_lists
    if thread_lists.state is ReadState.ABSENT:
        return []
    names = {thread.inner_tid: thread for thread in reading.threads}
    unplaced = 0
    for listed_thread in thread_lists.threads:
        if listed_thread.stack is not None:
            ranges.add(_listed_range(listed_thread, names, proved=thread_lists.state is ReadState.READ))
        elif listed_thread.exited:
            unplaced += 1
    for start, end in thread_lists.stack_cache:
        ranges.add(KnownRange(start, end, Kind.STACK_CACHE))
    if unplaced:
        return [f"{unplaced} exited, never joined threads have stacks whose extent is unknown: not classed"]
    return []


def _listed_range(listed_thread: ListedThread, names: dict[int, LiveThread], proved: bool) -> KnownRange:
    assert listed_thread.stack is not None
    start, end = listed_thread.stack
    if not listed_thread.exited:
        live = names.get(listed_thread.tid)
        if live is None:
            return KnownRange(start, end, Kind.THREAD_STACK, note="starting or ending just now")
        return KnownRange(start, end, Kind.THREAD_STACK, live.tid, live.name)
    if not proved:
        note = "exited; glibc's thread lists keep changing"
        return KnownRange(start, end, Kind.THREAD_STACK, start_routine=listed_thread.start_routine, note=note)
    note = "stack given by the application" if listed_thread.user_stack else ""
    if listed_thread.detached:
        note = BARE_EXIT
    return KnownRange(start, end, Kind.ORPHANED_STACK, start_routine=listed_thread.start_routine, note=note)


def _add_by_pointer(ranges: KnownRanges, reading: Reading) -> list[str]:
    """Add stacks that are on no list (raw clone, musl, static programs), by the live stack pointers."""
    starts = [vma.start for vma in reading.vmas]
    on: dict[int, list[LiveThread]] = {}
    unseen = 0
    listed_thread = {thread.tid for thread in reading.thread_lists.threads if thread.stack is not None}
    for thread in reading.threads:
        pointer = thread.stack_pointer
        if pointer is None:
            unseen += thread.inner_tid not in listed_thread
        elif not ranges.contains(pointer):
            on.setdefault(bisect_right(starts, pointer) - 1, []).append(thread)
    for at, threads in on.items():
        if at >= 0 and len(threads) == 1:
            _add_stack(ranges, reading.vmas[at], reading.vmas[at - 1] if at else None, threads[0])
    return _unseen_note(unseen)


def _unseen_note(unseen: int) -> list[str]:
    if not unseen:
        return []
    threads = "1 live thread was" if unseen == 1 else f"{unseen} live threads were"
    return [f"the stack pointer of {threads} could not be read: their stacks are not known by it"]


def _add_stack(ranges: KnownRanges, vma: Vma, below: Optional[Vma], thread: LiveThread) -> None:
    assert thread.stack_pointer is not None
    if thread.stack_pointer >= vma.end or vma.path == _MAIN_STACK:
        return
    if not vma.is_anonymous or "w" not in vma.perms:
        return
    guard = _guard_of(vma, below)
    if guard is None and vma.size > MAX_UNGUARDED_STACK:
        return
    ranges.add(
        KnownRange(
            vma.start if guard is None else guard.start, vma.end, Kind.THREAD_STACK, thread.tid, thread.name
        )
    )


def _guard_of(vma: Vma, below: Optional[Vma]) -> Optional[Vma]:
    return below if below is not None and below.end == vma.start and is_guard(below) else None


def stacks_without_thread(thread_lists: ThreadLists, areas: Iterable[Area]) -> list[Interval]:
    """Areas shaped like stacks on which no thread runs, if there are no thread lists to show their owner."""
    if thread_lists.state is not ReadState.ABSENT or not thread_lists.has_mapped_stacks:
        return []
    return [Interval(area.start, area.end) for area in areas if area.kind is Kind.STACK_SHAPED]


def is_guard(vma: Vma) -> bool:
    """Whether it is small anonymous memory without access rights."""
    return vma.guard and vma.is_anonymous and vma.size <= MAX_GUARD
