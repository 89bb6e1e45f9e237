# SPDX-License-Identifier: Apache-2.0
"""The processes and the memory of a host at one moment: what ``ebpftrace scan`` reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ebpftrace.classify.meminfo import HostMemory
from ebpftrace.classify.ranking import Candidate


@dataclass(frozen=True)
class HostScan:
    """The result of one scan of the host."""

    taken_at: int
    """ns since the epoch."""
    seconds: Optional[float]
    """Time between the two readings; None if there was only one."""
    candidates: Sequence[Candidate]
    """All processes, most suspect first."""
    kernel_threads: int
    zombies: int
    vanished: int
    """Processes that exited while they were read."""
    unreadable: int
    """Processes whose mappings may not be read; only their size is judged."""
    not_looked: int
    """Processes whose mappings were not read for lack of time."""
    lists_unread: int
    """Processes whose thread lists should have been read, but could not be, or for lack of time were not."""
    unsearched: int
    """Processes with exited threads whose memory was not searched for lack of time."""
    memory: HostMemory
    """Without figures if there is no /proc/meminfo (proc(5), subset=pid)."""
    took: float
    """Seconds that the readings took, without the pause between two."""
    hidden: bool = False
    """/proc does not list the processes of other users (proc(5), hidepid)."""

    @property
    def sees_all(self) -> bool:
        """Every process was listed, and the mappings of most could be read."""
        return not self.hidden and 2 * self.unreadable < max(1, len(self.candidates))
