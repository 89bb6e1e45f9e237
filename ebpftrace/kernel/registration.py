"""Tell the kernel side of threads that were there before it: completely, although they come and go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Callable

from ebpftrace.process.tasks import Task

_MOST_PASSES = 50
"""Looks at the thread list until one finds nobody new; more means that something else is wrong."""


def register(
    find: Callable[[], Sequence[Task]],
    add: Callable[[Sequence[Task]], Sequence[Task]],
    forget: Callable[[int], None],
) -> bool:
    """Add all tasks that ``find`` finds, by ``add`` (which returns the new ones); whether none is missing.

    A thread that the kernel side knows brings its children in by itself, so a look that finds nobody
    unknown was complete.  ``forget(tid)`` is called for who exited before it was added: nobody tells
    the kernel side of that end.
    """
    added: list[Task] = []
    for _ in range(_MOST_PASSES):
        new = add([task for task in find() if not task.exited])
        added += new
        if not new:
            break
    for task in added:
        if not os.path.exists(f"/proc/{task.tgid}/task/{task.id.tid}"):  # noqa: PTH110 - one call each
            forget(task.id.tid)
    return not new
