# SPDX-License-Identifier: Apache-2.0
"""Which processes of a host probably leak mappings: proof comes first, then growth, then shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Optional

from ebpftrace.classify.known_ranges import is_guard
from ebpftrace.classify.model import Totals
from ebpftrace.model import ReadState, Vma

MIN_GROWTH = 1 << 20
"""Bytes of VIRT; any program may grow by less."""
MIN_EXCESS = 40 << 20
"""Bytes of stack-shaped areas without a thread; glibc's cache of stacks has up to 40 MiB of them."""
MIN_UNTOUCHED = 1 << 30
MIN_RATIO = 4.0
"""Writable private memory divided by RSS; programs with large stacks and arenas reach 2 to 3."""
MIN_HEAPS = 8
"""Heaps of arenas that are reported: 512 MiB of VIRT."""
MIN_AREA_SHARE = 0.5
"""Share of vm.max_map_count; at 1, mmap and thread creation fail."""


class Rank(IntEnum):
    """The weight of a reason; higher is worse."""

    ARENAS = 1
    UNTOUCHED = 2
    MANY_AREAS = 3
    NOT_JOINED = 4
    SURPLUS = 5
    UNDECIDED = 6
    GROWTH = 7
    NEVER_JOINED = 8


class Reason(NamedTuple):
    """Why a process is suspected."""

    rank: Rank
    size: int
    """Bytes concerned."""
    number: int


class MappingStats(NamedTuple):
    """The shape of a process by its mappings, without reading its memory."""

    areas: int
    writable: int
    """Bytes of writable private memory."""
    stacks: Totals
    """Guards with memory above them: the stacks of threads, live or exited."""
    heaps: int
    """Areas shaped like heaps of malloc's arenas."""


@dataclass(frozen=True)
class ProcessStats:
    """One process; sizes in bytes."""

    pid: int
    comm: str
    threads: int
    virt: int
    rss: int
    started: int
    """Start time in ns of CLOCK_MONOTONIC; with the PID it identifies the process."""
    shape: Optional[MappingStats] = None
    """None if its mappings could not be read, or were not for lack of time."""
    thread_lists: Optional[ReadState] = None
    """None if glibc's thread lists were not read."""
    exited: int = 0
    """Threads that exited and are not joined so far, by glibc's thread lists."""
    exited_size: int = 0
    leaked: int = 0
    """Exited threads that are leaks, as ``mmap-leaks -d 0`` judges."""
    leaked_size: int = 0
    undecided: int = 0
    """Exited threads that may or may not be leaks."""
    undecided_size: int = 0
    arenas: Optional[int] = None
    """Arenas by malloc's own headers; None if the memory was not read."""
    virt_growth: Optional[int] = None
    """Growth since an earlier reading; None if there was none."""
    rss_growth: Optional[int] = None
    thread_growth: Optional[int] = None

    @property
    def ratio(self) -> float:
        """VIRT divided by RSS."""
        return self.virt / max(self.rss, 1)

    @property
    def heaps(self) -> int:
        """Arenas by malloc's headers if they were read, else by their shape."""
        if self.arenas is not None:
            return self.arenas
        return self.shape.heaps if self.shape is not None else 0


class Candidate(NamedTuple):
    """A process and the reasons to suspect it, heaviest first; there may be none."""

    figures: ProcessStats
    reasons: tuple[Reason, ...]


def rank_candidates(processes: Iterable[ProcessStats], max_areas: Optional[int]) -> list[Candidate]:
    """Order all processes, most suspect first, and by VIRT those without a reason.

    Of the processes that leak, the one with most leaked threads comes first: whatever the size of its stack,
    each takes two areas of vm.max_map_count and has touched about the same memory.  ``max_areas`` is
    vm.max_map_count, None if unknown.
    """
    suspects = [Candidate(figures, tuple(_reasons(figures, max_areas))) for figures in processes]
    return sorted(suspects, key=_weight, reverse=True)


def _weight(suspected: Candidate) -> tuple[int, int, int, int]:
    if not suspected.reasons:
        return 0, 0, 0, suspected.figures.virt
    top = suspected.reasons[0]
    threads = top.number if top.rank is Rank.NEVER_JOINED else 0
    return top.rank, threads, top.size, suspected.figures.virt


def _reasons(figures: ProcessStats, max_areas: Optional[int]) -> list[Reason]:
    reasons = []
    if figures.leaked:
        reasons.append(Reason(Rank.NEVER_JOINED, figures.leaked_size, figures.leaked))
    if figures.undecided:
        reasons.append(Reason(Rank.UNDECIDED, figures.undecided_size, figures.undecided))
    waiting = figures.exited - figures.leaked - figures.undecided
    if waiting > 0 and figures.thread_lists is ReadState.READ:
        size = figures.exited_size - figures.leaked_size - figures.undecided_size
        reasons.append(Reason(Rank.NOT_JOINED, size, waiting))
    if figures.virt_growth is not None and figures.virt_growth >= MIN_GROWTH:
        reasons.append(Reason(Rank.GROWTH, figures.virt_growth, figures.thread_growth or 0))
    if figures.shape is not None:
        reasons += _shape_reasons(figures, figures.shape, max_areas)
    return sorted(reasons, key=lambda reason: (reason.rank, reason.size), reverse=True)


def _shape_reasons(figures: ProcessStats, shape: MappingStats, max_areas: Optional[int]) -> list[Reason]:
    reasons = []
    count, size = excess(figures)
    # The shape of stacks counts only if the thread lists could not be read.
    if size > MIN_EXCESS and figures.thread_lists is not ReadState.READ:
        reasons.append(Reason(Rank.SURPLUS, size, count))
    if max_areas and shape.areas > MIN_AREA_SHARE * max_areas:
        reasons.append(Reason(Rank.MANY_AREAS, figures.virt, shape.areas))
    untouched = shape.writable - figures.rss
    # Leaked stacks are hardly touched, and are reported by another reason already.
    untouched -= figures.exited_size
    if untouched >= MIN_UNTOUCHED and shape.writable >= MIN_RATIO * figures.rss:
        reasons.append(Reason(Rank.UNTOUCHED, untouched, 0))
    if figures.heaps >= MIN_HEAPS:
        reasons.append(Reason(Rank.ARENAS, 0, figures.heaps))
    return reasons


def excess(figures: ProcessStats) -> tuple[int, int]:
    """Number and (average) bytes of stack-shaped areas beyond one for each thread but the first."""
    if figures.shape is None or not figures.shape.stacks.number:
        return 0, 0
    stacks = figures.shape.stacks
    count = max(0, stacks.number - max(0, figures.threads - 1))
    return count, stacks.size * count // stacks.number


def expected_gain(figures: ProcessStats) -> int:
    """Bytes that glibc's thread lists might prove leaked; 0 if reading them is not worth the time.

    Stacks with guards are recognized by their shape.  With guards made by MADV_GUARD_INSTALL (glibc 2.42)
    they are not, so untouched memory is the indication; a program that leaked only one or two stacks may be
    missed.
    """
    _, size = excess(figures)
    if figures.shape is None:
        return 0
    untouched = figures.shape.writable - figures.rss
    return max(size, untouched if untouched > MIN_EXCESS + (64 << 20) else 0)


def shape_of(vmas: Sequence[Vma], heaps: int) -> MappingStats:
    """The shape of a process from its mappings (ascending)."""
    writable = stacks = stack_bytes = 0
    below: Optional[Vma] = None
    for vma in vmas:
        if "w" in vma.perms and vma.perms.endswith("p"):
            writable += vma.size
            if below is not None and below.end == vma.start and vma.is_anonymous:
                stacks += 1
                stack_bytes += below.size + vma.size
        below = vma if is_guard(vma) else None
    return MappingStats(len(vmas), writable, Totals(stacks, stack_bytes), heaps)
