# SPDX-License-Identifier: Apache-2.0
"""A whole host at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ebpftrace.anatomy.host import HostMemory
from ebpftrace.anatomy.suspicion import Suspect


@dataclass(frozen=True)
class Census:
    """What one scan of the host found."""

    taken_at: int
    """ns since the epoch."""
    seconds: Optional[float]
    """Between the two looks; None where there was one."""
    suspects: Sequence[Suspect]
    """All processes, most suspect first."""
    kernel_threads: int
    zombies: int
    vanished: int
    """Processes that exited while they were looked at."""
    unreadable: int
    """Processes whose mappings we may not read: judged by their size alone."""
    not_looked: int
    """Processes whose mappings there was no time to read."""
    books_unread: int
    """Processes whose thread lists were worth reading, but could not be read or there was no time."""
    unsearched: int
    """Processes with exited threads whose memory there was no time to search."""
    memory: HostMemory
    """Without figures where /proc/meminfo is not there (proc(5), subset=pid)."""
    took: float
    """Seconds of looking, without the wait between two looks."""
    hidden: bool = False
    """/proc does not list the processes of others (proc(5), hidepid)."""

    @property
    def sees_all(self) -> bool:
        """Every process was listed, and the mappings of most could be read."""
        return not self.hidden and 2 * self.unreadable < max(1, len(self.suspects))
