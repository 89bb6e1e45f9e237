# SPDX-License-Identifier: Apache-2.0
"""One look at a process, dissected: what ``ebpftrace maps`` reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from ebpftrace.anatomy.areas import Area, Kind, Totals, total, totals_by_kind
from ebpftrace.anatomy.growth import Growth
from ebpftrace.model import Books, Finding, Frame, TargetInfo


@dataclass(frozen=True)
class Look:
    """Everything that one look at a process found; sizes in bytes."""

    target: TargetInfo
    taken_at: int
    """ns since the epoch."""
    virt: int
    """VmSize as the kernel counts it, read right before the mappings."""
    rss: int
    vma_count: int
    max_vma_count: Optional[int]
    """vm.max_map_count; None where it could not be read."""
    books: Books
    areas: tuple[Area, ...]
    arenas: int
    """Arenas of glibc's malloc apart from the main one."""
    cores: int
    findings: tuple[Finding, ...]
    """Exited threads that nobody joined, and stacks without a thread, judged as ``mmap-leaks -d 0`` does."""
    routines: Mapping[int, Frame]
    """Start routines of exited threads, by address."""
    notes: tuple[str, ...]
    growth: Optional[Growth] = None
    """What changed since the look before; None for the first."""

    @cached_property
    def kinds(self) -> dict[Kind, Totals]:
        """Sums for each kind of area there is."""
        return totals_by_kind(self.areas)

    @cached_property
    def total(self) -> Totals:
        """Sums over all areas."""
        return total(self.areas)

    def of(self, kind: Kind) -> Totals:
        """Sums for one kind."""
        return self.kinds.get(kind, Totals())
