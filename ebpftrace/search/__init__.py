# SPDX-License-Identifier: Apache-2.0
"""The search: is the handle of an exited thread, or a pointer into a mapping, still stored in a process?

It reads the memory of the process.  What the result means is for the diagnosis to judge.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Callable, Optional

from ebpftrace import own_process
from ebpftrace.model import Search, Suspect, ThreadLists
from ebpftrace.search.hidden import disguised_pointers
from ebpftrace.unwind.copies import FramesOf

__all__ = ["disguised_pointers", "search"]

_THREADS = "OPENBLAS_NUM_THREADS"
NO_NUMPY = "numpy cannot be imported (ebpftrace doctor says why): handles and pointers were not searched"


def ignore(_: float) -> None:
    """Show no progress."""


def search(
    pid: int,
    suspects: Sequence[Suspect],
    thread_lists: ThreadLists,
    *,
    groups: Sequence[int] = (),
    limit: Optional[int] = None,
    deadline_cpu: Optional[float] = None,
    progress: Callable[[float], None] = ignore,
    frames_of: Optional[FramesOf] = None,
) -> Search:
    """Find what in process ``pid`` still refers to each of the suspects.

    ``groups`` are other thread groups of the address space; ``limit`` is the number of bytes to search at
    most; after ``deadline_cpu`` seconds of CPU time the search stops, incomplete.  ``progress`` is called
    often, with the fraction that is done.  ``frames_of`` unwinds stacks, so that holders on them have their
    frame. The process is not stopped and not written to, and no page is brought into memory.  Raises
    ``ProcessGone`` or ``CannotTrace``, and nothing whatever the memory contains.
    """
    if not suspects:
        return Search(complete=True)
    began = time.process_time()
    if not _has_numpy():
        return Search(gaps=(NO_NUMPY,))
    from ebpftrace.search.searching import Searching
    from ebpftrace.search.source import Source

    with Source(pid, groups) as source:
        return Searching(
            source, suspects, thread_lists, limit, deadline_cpu, progress, began, frames_of
        ).run()


def _has_numpy() -> bool:
    """Try to import numpy, which takes 0.1 s, without starting the threads of its linear algebra."""
    before = os.environ.get(_THREADS)
    if own_process.is_claimed():
        os.environ[_THREADS] = "1"
    try:
        import numpy  # noqa: F401
    except Exception:  # it is a RuntimeError if numpy was built for newer CPUs
        return False
    finally:
        if own_process.is_claimed():
            if before is None:
                del os.environ[_THREADS]
            else:
                os.environ[_THREADS] = before
    return True
