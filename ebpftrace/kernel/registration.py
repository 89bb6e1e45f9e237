"""Tell the kernel side of threads that were there before it: completely, although they come and go."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Callable

from ebpftrace.process.tasks import Task, find_task

_MOST_PASSES = 50
"""Looks at the thread list until one finds nobody new; more means that something else is wrong."""


def register(
    find: Callable[[], Mapping[int, int]],
    known: Callable[[], Collection[int]],
    add: Callable[[Iterable[Task]], Iterable[Task]],
    forget: Callable[[int], None],
) -> bool:
    """Add all threads that ``find`` lists (tid -> process); whether none is missing.

    ``known`` gives the tids that the kernel side has now, ``add`` returns who was new to it.  A thread that
    the kernel side knows brings its children in by itself, so a look that finds nobody new was complete.
    ``forget(tid)`` is called for who exited before it was added: nobody tells the kernel side of that end.
    """
    added: dict[int, int] = {}
    for _ in range(_MOST_PASSES):
        listed = find()
        # Asked after the list was read: of who is born known by then, none is read.  The kernel side drops
        # who exits, so a tid that is used again does not pass for known.
        unknown = _without(listed, known())
        new = {task.id.tid: task.tgid for task in add(_living(unknown))}
        added.update(new)
        if not new:
            break
    # Who was still listed after it had been added did not exit before.
    for tid, tgid in _without(added, listed.keys() - new.keys()).items():
        if not os.path.exists(f"/proc/{tgid}/task/{tid}"):  # noqa: PTH110 - one call each
            forget(tid)
    return not new


def _without(tids: Mapping[int, int], left_out: Collection[int]) -> dict[int, int]:
    return {tid: tgid for tid, tgid in tids.items() if tid not in left_out}


def _living(tids: Mapping[int, int]) -> Iterator[Task]:
    """Read each task when it is asked for: little time is left to exit before it is added."""
    for tid, tgid in tids.items():
        task = find_task(tgid, tid)
        if task is not None and not task.exiting:
            yield task
