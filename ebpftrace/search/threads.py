"""The threads of an address space at one moment: their stack pointers and registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from ebpftrace.process.livethreads import read_live_threads


class ThreadState(NamedTuple):
    """One thread as it last entered the kernel."""

    tid: int
    name: str
    stack_pointer: Optional[int]
    """None where it is not known: the thread runs, or nothing tells."""
    words: tuple[tuple[str, int], ...] = ()
    """Its registers, by name."""
    kernel: tuple[tuple[str, int], ...] = ()
    """Addresses that the kernel keeps for it, by what for."""


class Moment(NamedTuple):
    """All threads at one moment."""

    threads: tuple[ThreadState, ...]
    has_registers: bool
    activity: Optional[frozenset[tuple[int, ...]]] = None
    """Equal at two moments only if no thread has run between them; None where that can't be told."""


class Threads:
    """Looks at the threads of one address space."""

    def __init__(self, pid: int, groups: Sequence[int]) -> None:
        self._pid = pid
        self._groups = groups

    def look(self) -> Moment:
        """How they are now.  Raises ``ProcessGone`` or ``CannotTrace``."""
        threads = read_live_threads(self._pid, self._groups)
        return Moment(
            tuple(ThreadState(thread.tid, thread.name, thread.stack_pointer) for thread in threads), False
        )
