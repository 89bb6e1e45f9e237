# SPDX-License-Identifier: Apache-2.0
"""The words of this room: what one look at an address space saw, and the areas it is made of.

Sizes and addresses are bytes; text from the target is not yet escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.model import Books, Heap, Interval, LiveThread, Vma


class Kind(Enum):
    """What an area is, in the order of a report: what a leak looks like first."""

    ORPHANED_STACK = "orphaned-stack"
    """Its thread exited, and by glibc's books nobody joined or detached it."""
    STACK_SHAPED = "stack-shaped"
    """A guard below anonymous memory, as a stack has, and no thread of it is known."""
    ANONYMOUS = "anonymous"
    NAMED = "named-anonymous"
    """Named by the program with prctl(2), PR_SET_VMA_ANON_NAME."""
    HEAP = "heap"
    """The brk area: malloc's main arena."""
    MALLOC_ARENA = "malloc-arena"
    MALLOC_BLOCK = "malloc-block"
    """One allocation above malloc's mmap threshold."""
    THREAD_STACK = "thread-stack"
    MAIN_STACK = "main-stack"
    STACK_CACHE = "stack-cache"
    HUGE = "huge-pages"
    """Huge TLB pages (MAP_HUGETLB, hugetlbfs)."""
    SHARED = "shared-memory"
    JIT = "jit-code"
    """Executable memory without a file."""
    TEXT = "file-text"
    RODATA = "file-rodata"
    DATA = "file-data"
    FILE = "file-other"
    """A mapped file that is no program or library."""
    DEVICE = "device"
    RESERVED = "reserved"
    """Address space that nothing can touch."""
    GUARD = "guard"
    """Small pieces that nothing can touch, apart from those of stacks."""
    KERNEL = "vdso"
    """What the kernel maps into every process."""


UNEXPLAINED = frozenset({Kind.STACK_SHAPED, Kind.ANONYMOUS, Kind.RESERVED})
"""Kinds that no evidence accounts for: nobody but the program knows what they are."""


@dataclass(frozen=True)
class Sight:
    """All that one look at an address space saw."""

    vmas: Sequence[Vma]
    """/proc/PID/smaps: ascending, disjoint."""
    books: Books
    threads: Sequence[LiveThread] = ()
    heaps: Sequence[Heap] = ()
    blocks: Sequence[Interval] = ()
    """Allocations of glibc's malloc that have a mapping of their own."""


class Area(NamedTuple):
    """A piece of address space that is one thing, such as a stack with its guard."""

    start: int
    end: int
    kind: Kind
    size: int
    rss: int
    swap: int
    huge: int
    """Bytes in huge TLB pages, which the kernel counts in neither RSS nor ``rss``."""
    perms: str
    path: str
    guard: int = 0
    """Bytes at its low end that nothing can touch; part of ``size``."""
    tid: Optional[int] = None
    """Of the live thread whose stack this is."""
    thread: str = ""
    start_routine: int = 0
    """Of the exited thread whose stack this was."""
    note: str = ""
    inode: int = 0
    """Of the file that ``path`` names; 0 where there is none."""

    @property
    def resident(self) -> int:
        """Bytes in memory, huge TLB pages included."""
        return self.rss + self.huge


class Totals(NamedTuple):
    """Sums over areas."""

    number: int = 0
    size: int = 0
    resident: int = 0
    swap: int = 0

    def plus(self, area: Area) -> Totals:
        """With one more area."""
        return Totals(
            self.number + 1, self.size + area.size, self.resident + area.resident, self.swap + area.swap
        )

    def minus(self, other: Totals) -> Totals:
        """The differences."""
        return Totals(*(mine - theirs for mine, theirs in zip(self, other)))


def totals_by_kind(areas: Iterable[Area]) -> dict[Kind, Totals]:
    """Sums for each kind there is, in the order of ``Kind``."""
    sums: dict[Kind, Totals] = {}
    for area in areas:
        sums[area.kind] = sums.get(area.kind, Totals()).plus(area)
    return {kind: sums[kind] for kind in Kind if kind in sums}


def total(areas: Iterable[Area]) -> Totals:
    """Sums over all."""
    sums = Totals()
    for area in areas:
        sums = sums.plus(area)
    return sums


class Alike(NamedTuple):
    """Areas of the same kind, size and access: a leak repeats itself."""

    kind: Kind
    size: int
    perms: str
    note: str
    totals: Totals
    first: Area
    """The lowest of them."""


def unexplained(areas: Iterable[Area]) -> list[Alike]:
    """Areas that no evidence accounts for, alike ones together, most bytes first."""
    groups: dict[tuple[Kind, int, str, str], tuple[Totals, Area]] = {}
    for area in areas:
        if area.kind in UNEXPLAINED:
            key = (area.kind, area.size, area.perms, area.note)
            sums, first = groups.get(key, (Totals(), area))
            groups[key] = (sums.plus(area), first)
    alike = [Alike(*key, *group) for key, group in groups.items()]
    return sorted(alike, key=lambda group: group.totals.size, reverse=True)
