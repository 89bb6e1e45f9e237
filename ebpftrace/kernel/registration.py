"""Tell the kernel side of threads that were there before it: completely, although they come and go."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Callable

from ebpftrace.process.tasks import Task, find_task

_MOST_PASSES = 50
"""Looks at the thread list until one finds nobody new; more means that something else is wrong."""

_AT_ONCE = 256
"""Threads read before they are added: faster than one by one, and few exit in these milliseconds."""


def register(
    find: Callable[[], Mapping[int, int]],
    known: Callable[[], Collection[int]],
    add: Callable[[Sequence[Task]], Iterable[Task]],
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
        unknown = iter(_without(listed, known()).items())
        new: dict[int, int] = {}
        while some := list(islice(unknown, _AT_ONCE)):
            new.update((task.id.tid, task.tgid) for task in add(_living(some)))
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


def _living(tids: Iterable[tuple[int, int]]) -> list[Task]:
    found = (find_task(tgid, tid) for tid, tgid in tids)
    return [task for task in found if task is not None and not task.exiting]
