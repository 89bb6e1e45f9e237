# SPDX-License-Identifier: Apache-2.0
"""The data model of ``growth``.  Units as in ``ebpftrace.model``: bytes, ns of CLOCK_MONOTONIC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.model import (
    NO_STACK,
    Calls,
    Clock,
    EndedBy,
    Losses,
    Stack,
    TargetInfo,
    Thread,
    ThreadId,
    TracerCost,
)
from ebpftrace.size_changes.resident import ResidentSummary, RssCause


class How(Enum):
    """What changed the size, inferred from the mappings before and after."""

    MMAP = "mmap"
    SHMAT = "shmat"
    IO_SETUP = "io_setup"
    MREMAP = "mremap"
    """An earlier mapping is larger."""
    MUNMAP = "munmap"
    """An earlier mapping is smaller or gone: by munmap, mremap, shmdt, io_destroy, or MAP_FIXED over it."""
    BRK = "brk"
    FAULT = "page fault"
    """An earlier MAP_GROWSDOWN mapping has grown below its start."""


MAKING = (How.MMAP, How.SHMAT, How.IO_SETUP)
"""The calls that make a mapping."""


class Change(NamedTuple):
    """The change of one mapping between two moments, or of the break by one thread or site."""

    how: How
    size: int
    """Bytes, negative where it shrank."""
    thread: Optional[ThreadId]
    """The thread that mapped it, or moved the break; None where it is not known."""
    site: int
    """The site that mapped it, or moved the break; 0 where there is none."""
    made_at: Optional[int] = None
    before_attach: bool = False


@dataclass(frozen=True)
class Cause:
    """Changes of one call, from one place, by threads of one name."""

    how: How
    size: int
    """Bytes, the sum of its changes: 0 where they cancel."""
    mappings: int
    """Mappings that changed; 0 for brk."""
    threads: tuple[Thread, ...]
    """The threads that mapped them; empty where they are not known."""
    stack: Stack = NO_STACK
    before_attach: bool = False
    """The mappings that changed were mapped before the tracer attached, so the mapper is not known."""


class Size(NamedTuple):
    """Size of an address space at one moment."""

    at: int
    virt: int
    rss: int


@dataclass(frozen=True)
class Step:
    """One interval."""

    before: Size
    after: Size
    causes: Optional[tuple[Cause, ...]]
    """Largest first; what was mapped and unmapped within the interval does not show.

    None: not looked for, since looking takes long in a process with so many mappings.  The next interval
    that has causes tells of this one too.
    """
    since: Size
    """From when on the causes are: the size ``before``, or an earlier one."""
    rss_causes: Optional[tuple[RssCause, ...]] = None
    """What filled memory since then, largest first; None where page faults are not sampled."""

    @property
    def virt(self) -> int:
        """By how many bytes VIRT changed."""
        return self.after.virt - self.before.virt

    @property
    def rss(self) -> int:
        """By how many bytes RSS changed."""
        return self.after.rss - self.before.rss

    @property
    def seconds(self) -> float:
        """Length of the interval."""
        return (self.after.at - self.before.at) / 1e9

    @property
    def unexplained(self) -> int:
        """Bytes of the change of VIRT that no cause explains; 0 where none was looked for.

        The main thread's stack, lost events; and, for a moment, what was mapped or unmapped between
        the reading of the size and that of the ledger.
        """
        if self.causes is None:
            return 0
        return self.after.virt - self.since.virt - sum(cause.size for cause in self.causes)


@dataclass(frozen=True)
class Regular:
    """How regularly a cause recurs."""

    period: float
    """Seconds."""
    step: int
    """Bytes each time."""


@dataclass(frozen=True)
class SiteGrowth:
    """What one cause comes to over the whole window."""

    cause: Cause
    regular: Optional[Regular] = None


@dataclass(frozen=True)
class Summary:
    """The whole window."""

    target: TargetInfo
    clock: Clock
    ended_by: EndedBy
    whole: Step
    """All of the window as one interval."""
    sites: tuple[SiteGrowth, ...]
    """The causes of the whole, regular ones first, then largest first."""
    calls: Calls
    losses: Losses
    sizes: tuple[int, ...]
    """VIRT over the window, evenly spaced."""
    notes: tuple[str, ...] = ()
    cost: Optional[TracerCost] = None
    resident: Optional[ResidentSummary] = None
    """Where page faults were sampled, and smaps could be read at both ends."""
