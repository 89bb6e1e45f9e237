# SPDX-License-Identifier: Apache-2.0
"""Tell the kernel side of threads that were there before it: completely, although they come and go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Callable, NamedTuple

from ebpftrace.process.tasks import Listed, Task, find_task

_MOST_PASSES = 50
"""Looks at the thread list until one finds nobody new; more means that something else is wrong."""

_AT_ONCE = 256
"""Threads read before they are added: faster than one by one, and few exit in these milliseconds."""

Forget = Callable[[Task], None]
"""Called for who exited before it was added: nobody tells the kernel side of that end."""


class Registered(NamedTuple):
    """Who was told."""

    complete: bool
    """Nobody is missing."""
    added: list[Task]


def meet(listed: Iterable[Listed]) -> dict[Listed, Task]:
    """Read tasks some time before they are registered: of ten thousand that takes a tenth of a second.

    Who exits meanwhile is not in the list any more.  A leader may be, so it is not among these.
    """
    found = ((one, find_task(one.tgid, one.tid)) for one in listed if one.tid != one.tgid)
    return {one: task for one, task in found if task is not None and not task.exiting}


def register(
    find: Callable[[], Iterable[Listed]],
    known: Callable[[], Collection[int]],
    add: Callable[[Sequence[Task]], Iterable[Task]],
    forget: Forget,
    met: Mapping[Listed, Task],
) -> Registered:
    """Add all tasks that ``find`` lists; of those in ``met`` it is known who they are.

    ``known`` gives the tids that the kernel side has now, ``add`` returns who was new to it.  A thread that
    the kernel side knows brings its children in by itself, so a look that finds nobody new was complete.
    """
    added: dict[int, Task] = {}
    for _ in range(_MOST_PASSES):
        listed = {one.tid: one for one in find()}
        # Asked after the list was read: of who is born known by then, none is read.  The kernel side drops
        # who exits, so a tid that is used again does not pass for known.
        tids = known()
        unknown = iter([one for tid, one in listed.items() if tid not in tids])
        new: dict[int, Task] = {}
        while some := list(islice(unknown, _AT_ONCE)):
            new.update((task.id.tid, task) for task in add(_living(some, met)))
        added.update(new)
        if not new:
            break
    # Who was still listed after it had been added did not exit before, or only just: see ``confirm``.
    confirm((task for tid, task in added.items() if tid in new or tid not in listed), forget)
    return Registered(not new, list(added.values()))


def confirm(added: Iterable[Task], forget: Forget) -> None:
    """Forget who had exited when it was added, but was so slow to go that it was still listed after that.

    To be called again a while after ``register``.  Of who exited later, the kernel side knows by itself.
    """
    for task in added:
        now = find_task(task.tgid, task.id.tid)
        if now is None or now.exited:
            forget(task)


def _living(some: Iterable[Listed], met: Mapping[Listed, Task]) -> list[Task]:
    found = (met.get(one) or find_task(one.tgid, one.tid) for one in some)
    return [task for task in found if task is not None and not task.exiting]
