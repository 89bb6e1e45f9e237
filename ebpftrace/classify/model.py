# SPDX-License-Identifier: Apache-2.0
"""Data model of this package: one reading of an address space, and the areas it consists of.

Sizes and addresses are bytes; text from the target is not yet escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.model import Heap, Interval, LiveThread, ThreadLists, Vma


class Kind(Enum):
    """The use of an area, in the order of a report: what is most likely a leak comes first."""

    ORPHANED_STACK = "orphaned-stack"
    """Its thread exited and, by glibc's thread lists, was neither joined nor detached."""
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
    """Address space without access rights."""
    GUARD = "guard"
    """Small pieces without access rights, apart from the guards of stacks."""
    KERNEL = "vdso"
    """Mappings that the kernel makes in every process."""


UNEXPLAINED = frozenset({Kind.STACK_SHAPED, Kind.ANONYMOUS, Kind.RESERVED})
"""Kinds for which there is no evidence of their use."""


@dataclass(frozen=True)
class Reading:
    """All that was read of an address space at one moment."""

    vmas: Sequence[Vma]
    """/proc/PID/smaps: ascending, disjoint."""
    thread_lists: ThreadLists
    threads: Sequence[LiveThread] = ()
    heaps: Sequence[Heap] = ()
    blocks: Sequence[Interval] = ()
    """Allocations of glibc's malloc that have a mapping of their own."""


class Area(NamedTuple):
    """A piece of address space with one use, such as a stack with its guard."""

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
    """Bytes at the low end without access rights; part of ``size``."""
    tid: Optional[int] = None
    """Tid of the live thread whose stack this is."""
    thread: str = ""
    start_routine: int = 0
    """Start routine of the exited thread whose stack this was."""
    note: str = ""
    inode: int = 0
    """Inode of the file that ``path`` names; 0 if there is none."""

    @property
    def resident(self) -> int:
        """Bytes in memory, including huge TLB pages."""
        return self.rss + self.huge


class Totals(NamedTuple):
    """Sums over areas."""

    number: int = 0
    size: int = 0
    resident: int = 0
    swap: int = 0

    def plus(self, area: Area) -> Totals:
        """The sums with one more area."""
        return Totals(
            self.number + 1, self.size + area.size, self.resident + area.resident, self.swap + area.swap
        )

    def minus(self, other: Totals) -> Totals:
        """The differences."""
        return Totals(*(mine - theirs for mine, theirs in zip(self, other)))


def totals_by_kind(areas: Iterable[Area]) -> dict[Kind, Totals]:
    """Sums for each kind that occurs, in the order of ``Kind``."""
    sums: dict[Kind, Totals] = {}
    for area in areas:
        sums[area.kind] = sums.get(area.kind, Totals()).plus(area)
    return {kind: sums[kind] for kind in Kind if kind in sums}


def total(areas: Iterable[Area]) -> Totals:
    """Sums over all areas."""
    sums = Totals()
    for area in areas:
        sums = sums.plus(area)
    return sums


class SimilarAreas(NamedTuple):
    """Areas of the same kind, size and permissions, as a leak makes them."""

    kind: Kind
    size: int
    perms: str
    note: str
    totals: Totals
    first: Area
    """The lowest of them."""


def unexplained(areas: Iterable[Area]) -> list[SimilarAreas]:
    """Areas of the kinds in ``UNEXPLAINED``, grouped with similar ones, most bytes first."""
    groups: dict[tuple[Kind, int, str, str], tuple[Totals, Area]] = {}
    for area in areas:
        if area.kind in UNEXPLAINED:
            key = (area.kind, area.size, area.perms, area.note)
            sums, first = groups.get(key, (Totals(), area))
            groups[key] = (sums.plus(area), first)
    similar = [SimilarAreas(*key, *group) for key, group in groups.items()]
    return sorted(similar, key=lambda group: group.totals.size, reverse=True)
