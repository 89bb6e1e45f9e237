# SPDX-License-Identifier: Apache-2.0
"""What is known of ranges of an address space, whatever VMAs they are made of.

A range is claimed on evidence: glibc's books, live stack pointers, malloc's own headers.  The kernel merges
neighbouring mappings and splits one by access, so a stack or a heap is rarely one VMA.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple, Optional

from ebpftrace.anatomy.areas import Area, Kind, Sight
from ebpftrace.model import BookedThread, Books, BooksState, Interval, LiveThread, Vma

MAX_GUARD = 1 << 20
"""Most bytes of a guard; what is larger and can't be touched is a reservation.  glibc's default is 4 KiB,
Java's zones take up to 100 KiB."""
MAX_UNGUARDED_STACK = 1 << 20
"""A stack pointer alone makes no stack of what is larger and has no guard: runtimes such as Go's run
threads on pieces of their heap."""
_MAIN_STACK = "[stack]"
BARE_EXIT = "detached, ended by a bare exit system call"
"""Note of an orphaned stack of which no join is missing."""


class Claim(NamedTuple):
    """A range that is one thing."""

    start: int
    end: int
    kind: Kind
    tid: Optional[int] = None
    thread: str = ""
    start_routine: int = 0
    note: str = ""


class Claims:
    """Disjoint claims; of two that overlap the first made counts, so the best evidence comes first."""

    def __init__(self) -> None:
        self._claims: list[Claim] = []
        self._starts: list[int] = []

    def add(self, claim: Claim) -> None:
        """Claim a range, unless a part of it is claimed already."""
        at = bisect_right(self._starts, claim.start)
        if claim.start >= claim.end:
            return
        if at and self._claims[at - 1].end > claim.start:
            return
        if at < len(self._starts) and self._starts[at] < claim.end:
            return
        self._starts.insert(at, claim.start)
        self._claims.insert(at, claim)

    def holds(self, address: int) -> bool:
        """Whether the address is claimed."""
        at = bisect_right(self._starts, address)
        return bool(at) and self._claims[at - 1].end > address

    def sorted(self) -> list[Claim]:
        """All, ascending."""
        return list(self._claims)


def claim_all(sight: Sight) -> tuple[list[Claim], list[str]]:
    """What the evidence of one look claims, ascending and disjoint, and notes on what it can't place."""
    claims = Claims()
    notes = _claim_booked(claims, sight)
    for heap in sight.heaps:
        note = "" if heap.first else "further heap of an arena"
        claims.add(Claim(heap.start, heap.end, Kind.MALLOC_ARENA, note=note))
    notes += _claim_by_pointer(claims, sight)
    for block in sight.blocks:
        claims.add(Claim(block.start, block.end, Kind.MALLOC_BLOCK))
    return claims.sorted(), notes


def _claim_booked(claims: Claims, sight: Sight) -> list[str]:
    books = sight.books
    if books.state is BooksState.ABSENT:
        return []
    names = {thread.inner_tid: thread for thread in sight.threads}
    unplaced = 0
    for booked in books.threads:
        if booked.stack is not None:
            claims.add(_booked_claim(booked, names, proved=books.state is BooksState.READ))
        elif booked.exited:
            unplaced += 1
    for start, end in books.stack_cache:
        claims.add(Claim(start, end, Kind.STACK_CACHE))
    if unplaced:
        return [f"{unplaced} exited, never joined threads have stacks whose extent is unknown: not classed"]
    return []


def _booked_claim(booked: BookedThread, names: dict[int, LiveThread], proved: bool) -> Claim:
    assert booked.stack is not None
    start, end = booked.stack
    if not booked.exited:
        live = names.get(booked.tid)
        if live is None:
            return Claim(start, end, Kind.THREAD_STACK, note="starting or ending just now")
        return Claim(start, end, Kind.THREAD_STACK, live.tid, live.name)
    if not proved:
        note = "exited; glibc's thread lists keep changing"
        return Claim(start, end, Kind.THREAD_STACK, start_routine=booked.start_routine, note=note)
    note = "stack given by the application" if booked.user_stack else ""
    if booked.detached:
        note = BARE_EXIT
    return Claim(start, end, Kind.ORPHANED_STACK, start_routine=booked.start_routine, note=note)


def _claim_by_pointer(claims: Claims, sight: Sight) -> list[str]:
    """Stacks that no book lists (raw clone, musl, static programs), by where live threads stand on them."""
    starts = [vma.start for vma in sight.vmas]
    on: dict[int, list[LiveThread]] = {}
    unseen = 0
    booked = {thread.tid for thread in sight.books.threads if thread.stack is not None}
    for thread in sight.threads:
        pointer = thread.stack_pointer
        if pointer is None:
            unseen += thread.inner_tid not in booked
        elif not claims.holds(pointer):
            on.setdefault(bisect_right(starts, pointer) - 1, []).append(thread)
    for at, threads in on.items():
        if at >= 0 and len(threads) == 1:
            _claim_stack(claims, sight.vmas[at], sight.vmas[at - 1] if at else None, threads[0])
    return _unseen_note(unseen)


def _unseen_note(unseen: int) -> list[str]:
    if not unseen:
        return []
    threads = "1 live thread was" if unseen == 1 else f"{unseen} live threads were"
    return [f"the stack pointer of {threads} could not be read: their stacks are not known by it"]


def _claim_stack(claims: Claims, vma: Vma, below: Optional[Vma], thread: LiveThread) -> None:
    assert thread.stack_pointer is not None
    if thread.stack_pointer >= vma.end or vma.path == _MAIN_STACK:
        return
    if not vma.is_anonymous or "w" not in vma.perms:
        return
    guard = _guard_of(vma, below)
    if guard is None and vma.size > MAX_UNGUARDED_STACK:
        return
    claims.add(
        Claim(
            vma.start if guard is None else guard.start, vma.end, Kind.THREAD_STACK, thread.tid, thread.name
        )
    )


def _guard_of(vma: Vma, below: Optional[Vma]) -> Optional[Vma]:
    return below if below is not None and below.end == vma.start and is_guard(below) else None


def stacks_without_thread(books: Books, areas: Iterable[Area]) -> list[Interval]:
    """Areas shaped like stacks on which no thread runs, where no thread lists say whose they are."""
    if books.state is not BooksState.ABSENT:
        return []
    return [Interval(area.start, area.end) for area in areas if area.kind is Kind.STACK_SHAPED]


def is_guard(vma: Vma) -> bool:
    """Small anonymous memory that nothing can touch."""
    return vma.guard and vma.is_anonymous and vma.size <= MAX_GUARD
