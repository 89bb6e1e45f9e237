# SPDX-License-Identifier: Apache-2.0
"""One reading of an address space, classified: what ``ebpftrace maps`` reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from ebpftrace.classify.changes import Growth
from ebpftrace.classify.model import Area, Kind, Totals, total, totals_by_kind
from ebpftrace.glibc import Cores
from ebpftrace.model import Finding, Frame, TargetInfo, ThreadLists


@dataclass(frozen=True)
class MapsReport:
    """The result of one reading of a process; sizes are bytes."""

    target: TargetInfo
    taken_at: int
    """ns since the epoch."""
    virt: int
    """VmSize as the kernel counts it, read directly before the mappings."""
    rss: int
    vma_count: int
    max_vma_count: Optional[int]
    """vm.max_map_count; None if it could not be read."""
    thread_lists: ThreadLists
    areas: tuple[Area, ...]
    arenas: int
    """Number of arenas of glibc's malloc besides the main one."""
    cores: Cores
    findings: tuple[Finding, ...]
    """Exited, unjoined threads, and stacks without a thread, judged as ``mmap-leaks -d 0`` does."""
    routines: Mapping[int, Frame]
    """Start routines of exited threads, by address."""
    notes: tuple[str, ...]
    growth: Optional[Growth] = None
    """Changes since the reading before; None for the first."""

    @cached_property
    def kinds(self) -> dict[Kind, Totals]:
        """Sums for each kind of area."""
        return totals_by_kind(self.areas)

    @cached_property
    def total(self) -> Totals:
        """Sums over all areas."""
        return total(self.areas)

    def of(self, kind: Kind) -> Totals:
        """Sums for one kind."""
        return self.kinds.get(kind, Totals())
