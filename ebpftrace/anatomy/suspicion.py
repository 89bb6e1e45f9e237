# SPDX-License-Identifier: Apache-2.0
"""Which processes of a host look as if they leaked mappings: proof first, then growth, then shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Optional

from ebpftrace.anatomy.areas import Totals
from ebpftrace.anatomy.claims import is_guard
from ebpftrace.model import BooksState, Vma

MIN_GROWTH = 1 << 20
"""Bytes of VIRT: less comes and goes in any program."""
MIN_SURPLUS = 40 << 20
"""Bytes of stack-shaped areas without a thread: glibc's cache of stacks holds up to 40 MiB."""
MIN_UNTOUCHED = 1 << 30
MIN_RATIO = 4.0
"""Writable private memory against RSS: programs with large stacks and arenas show 2 to 3."""
MIN_HEAPS = 8
"""Heaps of arenas worth a word: 512 MiB of VIRT."""
MIN_AREA_SHARE = 0.5
"""Of vm.max_map_count: at 1, mmap and thread creation fail."""


class Rank(IntEnum):
    """How much a reason weighs; higher is worse."""

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
    """Bytes that it is about."""
    number: int


class Shape(NamedTuple):
    """What the mappings of a process look like, without reading its memory."""

    areas: int
    writable: int
    """Bytes of private memory that can be written."""
    stacks: Totals
    """Guards with memory above: the stacks of threads, live or not."""
    heaps: int
    """Areas that look like heaps of malloc's arenas."""


@dataclass(frozen=True)
class Figures:
    """One process; sizes in bytes."""

    pid: int
    comm: str
    threads: int
    virt: int
    rss: int
    started: int
    """Start time in CLOCK_MONOTONIC ns: with the PID it names the process."""
    shape: Optional[Shape] = None
    """None where its mappings could not be read, or there was no time to."""
    books: Optional[BooksState] = None
    """None where glibc's books were not looked at."""
    exited: int = 0
    """Threads that exited and are not joined so far, by glibc's thread lists."""
    exited_size: int = 0
    leaked: int = 0
    """Those of them that are leaks, as ``mmap-leaks -d 0`` judges."""
    leaked_size: int = 0
    undecided: int = 0
    """Those of which that can't be told."""
    undecided_size: int = 0
    arenas: Optional[int] = None
    """By malloc's own headers; None where the memory was not looked at."""
    virt_growth: Optional[int] = None
    """Since an earlier look; None where there was none."""
    rss_growth: Optional[int] = None
    thread_growth: Optional[int] = None

    @property
    def ratio(self) -> float:
        """VIRT for each byte of RSS."""
        return self.virt / max(self.rss, 1)

    @property
    def heaps(self) -> int:
        """Arenas as well as they are known."""
        if self.arenas is not None:
            return self.arenas
        return self.shape.heaps if self.shape is not None else 0


class Suspect(NamedTuple):
    """A process and what speaks against it, heaviest first; no reasons where nothing does."""

    figures: Figures
    reasons: tuple[Reason, ...]


def suspect(processes: Iterable[Figures], max_areas: Optional[int]) -> list[Suspect]:
    """All processes, most suspect first; among those without a reason, by VIRT.

    Of those that leak, who holds most threads comes first: whatever the size of its stack,
    each has taken two areas of vm.max_map_count, and touched about as much memory.
    ``max_areas`` is vm.max_map_count, None where unknown.
    """
    suspects = [Suspect(figures, tuple(_reasons(figures, max_areas))) for figures in processes]
    return sorted(suspects, key=_weight, reverse=True)


def _weight(suspected: Suspect) -> tuple[int, int, int, int]:
    if not suspected.reasons:
        return 0, 0, 0, suspected.figures.virt
    top = suspected.reasons[0]
    threads = top.number if top.rank is Rank.NEVER_JOINED else 0
    return top.rank, threads, top.size, suspected.figures.virt


def _reasons(figures: Figures, max_areas: Optional[int]) -> list[Reason]:
    reasons = []
    if figures.leaked:
        reasons.append(Reason(Rank.NEVER_JOINED, figures.leaked_size, figures.leaked))
    if figures.undecided:
        reasons.append(Reason(Rank.UNDECIDED, figures.undecided_size, figures.undecided))
    waiting = figures.exited - figures.leaked - figures.undecided
    if waiting > 0 and figures.books is BooksState.READ:
        size = figures.exited_size - figures.leaked_size - figures.undecided_size
        reasons.append(Reason(Rank.NOT_JOINED, size, waiting))
    if figures.virt_growth is not None and figures.virt_growth >= MIN_GROWTH:
        reasons.append(Reason(Rank.GROWTH, figures.virt_growth, figures.thread_growth or 0))
    if figures.shape is not None:
        reasons += _shape_reasons(figures, figures.shape, max_areas)
    return sorted(reasons, key=lambda reason: (reason.rank, reason.size), reverse=True)


def _shape_reasons(figures: Figures, shape: Shape, max_areas: Optional[int]) -> list[Reason]:
    reasons = []
    count, size = surplus(figures)
    # Books that were read have the last word on stacks.
    if size > MIN_SURPLUS and figures.books is not BooksState.READ:
        reasons.append(Reason(Rank.SURPLUS, size, count))
    if max_areas and shape.areas > MIN_AREA_SHARE * max_areas:
        reasons.append(Reason(Rank.MANY_AREAS, figures.virt, shape.areas))
    untouched = shape.writable - figures.rss
    # Stacks that leaked are hardly touched: that much is told already.
    untouched -= figures.exited_size
    if untouched >= MIN_UNTOUCHED and shape.writable >= MIN_RATIO * figures.rss:
        reasons.append(Reason(Rank.UNTOUCHED, untouched, 0))
    if figures.heaps >= MIN_HEAPS:
        reasons.append(Reason(Rank.ARENAS, 0, figures.heaps))
    return reasons


def surplus(figures: Figures) -> tuple[int, int]:
    """Stack-shaped areas beyond one for each thread but the first: their number and bytes, on average."""
    if figures.shape is None or not figures.shape.stacks.number:
        return 0, 0
    stacks = figures.shape.stacks
    count = max(0, stacks.number - max(0, figures.threads - 1))
    return count, stacks.size * count // stacks.number


def promise(figures: Figures) -> int:
    """Bytes that glibc's books might prove leaked: 0 where reading them would be a waste.

    Stacks with guards show by their shape.  Guards by MADV_GUARD_INSTALL (glibc 2.42) don't, and there
    it is untouched memory that tells; a program that leaked only one or two stacks may pass.
    """
    _, size = surplus(figures)
    if figures.shape is None:
        return 0
    untouched = figures.shape.writable - figures.rss
    return max(size, untouched if untouched > MIN_SURPLUS + (64 << 20) else 0)


def shape_of(vmas: Sequence[Vma], heaps: int) -> Shape:
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
    return Shape(len(vmas), writable, Totals(stacks, stack_bytes), heaps)
