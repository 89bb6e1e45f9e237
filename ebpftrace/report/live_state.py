# SPDX-License-Identifier: Apache-2.0
"""The data of the live view, in a module of its own: most traces have no terminal and draw nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ebpftrace.model import Memory


@dataclass(frozen=True)
class LiveState:
    """The figures of one moment of the trace: seconds, counts, bytes."""

    comm: str
    pid: int
    elapsed: float
    remaining: Optional[float]
    """None where only an interrupt ends the trace."""
    mmap: int
    """Calls since attach, failed ones included; so is ``munmap``."""
    munmap: int
    outstanding: int
    outstanding_bytes: int
    orphaned: int
    """Outstanding mappings whose owner has exited."""
    orphaned_bytes: int
    memory: Memory
    """``virt_end`` and ``rss_end`` are those of now."""
    threads_created: int
    threads_exited: int
    threads_only: bool
    """No system call is traced: nothing is known of mappings."""
    lost: int
    """Events and mappings that could not be recorded."""
