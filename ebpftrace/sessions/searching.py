# SPDX-License-Identifier: Apache-2.0
"""How the sessions search a target's memory, within the limits that the user sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable, Optional

from ebpftrace.model import NOT_SEARCHED, Search, Suspect, ThreadLists
from ebpftrace.unwind.copies import FramesOf

Searcher = Callable[[int, Sequence[Suspect], ThreadLists, Sequence[int], Optional[FramesOf]], Search]
"""Searches process PID for the suspects, given glibc's thread lists, the thread groups in its address space,
and what unwinds its stacks.

Raises CannotTrace, ProcessGone.
"""


def no_searcher(
    _pid: int,
    _suspects: Sequence[Suspect],
    _thread_lists: ThreadLists,
    _groups: Sequence[int],
    _frames_of: Optional[FramesOf] = None,
) -> Search:
    """The searcher for ``--no-search``."""
    return replace(NOT_SEARCHED, gaps=("its memory was not searched (--no-search)",))


@dataclass(frozen=True)
class MemorySearcher:
    """A ``Searcher`` that reads the memory of the target."""

    limit: Optional[int] = None
    """Bytes to search at most; None: all."""
    cpu_seconds: Optional[float] = None
    """CPU time to take at most; None: as long as it takes."""
    progress: Callable[[float], None] = lambda _done: None
    """Gets the part that is done, from 0 to 1."""

    def __call__(
        self,
        pid: int,
        suspects: Sequence[Suspect],
        thread_lists: ThreadLists,
        groups: Sequence[int],
        frames_of: Optional[FramesOf] = None,
    ) -> Search:
        """Search; as ``Searcher``."""
        from ebpftrace.search import search  # numpy takes 0.1 s to import, and not every report needs it

        return search(
            pid,
            suspects,
            thread_lists,
            groups=groups,
            limit=self.limit,
            deadline_cpu=self.cpu_seconds,
            progress=self.progress,
            frames_of=frames_of,
        )
