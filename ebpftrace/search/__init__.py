# SPDX-License-Identifier: Apache-2.0
"""The search: is a handle of an exited thread, or a pointer into a mapping, still stored in a process?

It reads what the process has in memory, and judges nothing: who is a leak, the diagnosis says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Callable, Optional

from ebpftrace.model import Books, Search, Suspect
from ebpftrace.search.hidden import KeptWithoutPointer, disguised_pointers
from ebpftrace.stacks.copies import FramesOf

__all__ = ["KeptWithoutPointer", "disguised_pointers", "search"]

_THREADS = "OPENBLAS_NUM_THREADS"
NO_NUMPY = "numpy cannot be imported (ebpftrace doctor says why): handles and pointers were not searched"


def ignore(_: float) -> None:
    """No progress is shown."""


def search(
    pid: int,
    suspects: Sequence[Suspect],
    books: Books,
    *,
    groups: Sequence[int] = (),
    limit: Optional[int] = None,
    deadline_cpu: Optional[float] = None,
    progress: Callable[[float], None] = ignore,
    frames_of: Optional[FramesOf] = None,
) -> Search:
    """Say what in process ``pid`` still refers to each of the suspects.

    ``groups``: other thread groups of the address space; ``limit``: bytes to search at most;
    ``deadline_cpu``: seconds of CPU after which it stops, incomplete; ``progress`` is called often, with the
    fraction that is done; ``frames_of`` unwinds stacks: holders on them get the frame that they lie in.
    The process is not stopped and not written to, and no page is brought into memory.
    Raises ``ProcessGone`` or ``CannotTrace``, and nothing for what the process holds.
    """
    if not suspects:
        return Search(complete=True)
    began = time.process_time()
    if not _has_numpy():
        return Search(gaps=(NO_NUMPY,))
    from ebpftrace.search.searching import Searching
    from ebpftrace.search.source import Source

    with Source(pid, groups) as source:
        return Searching(source, suspects, books, limit, deadline_cpu, progress, began, frames_of).run()


def _has_numpy() -> bool:
    """Import numpy, which takes 0.1 s and may be missing, without the threads of its linear algebra."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        import numpy  # noqa: F401
    except Exception:  # a RuntimeError too, where it is built for later CPUs
        return False
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before
    return True
