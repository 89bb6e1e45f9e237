# SPDX-License-Identifier: Apache-2.0
"""Register the threads of a running process with the BPF programs, none missing, though they come and go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Callable, NamedTuple

from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.sharing import Sharers, same_address_space
from ebpftrace.procfs.tasks import Listed, Task, find_task, listed_tasks

if TYPE_CHECKING:
    from ebpftrace.capture.tracer import Tracer

_MAX_PASSES = 50
"""Readings of the thread list until one finds no new thread; more means that something else is wrong."""

_AT_ONCE = 256
"""Threads read before they are added: faster than one by one, and few exit in these milliseconds."""

Forget = Callable[[Task], None]
"""Called for a thread that exited before it was added: its exit is not seen any more."""


class Registered(NamedTuple):
    """The result of a registration."""

    complete: bool
    """No thread is missing."""
    added: list[Task]


def preload(listed: Iterable[Listed]) -> dict[Listed, Task]:
    """Read tasks some time before they are registered, as ten thousand take a tenth of a second.

    Threads that exit later leave the list, except group leaders (zombies), which are therefore skipped here.
    """
    found = ((entry, find_task(entry.tgid, entry.tid)) for entry in listed if entry.tid != entry.tgid)
    return {entry: task for entry, task in found if task is not None and not task.exiting}


def register(
    find: Callable[[], Iterable[Listed]],
    known: Callable[[], Collection[int]],
    add: Callable[[Sequence[Task]], Iterable[Task]],
    forget: Forget,
    preloaded: Mapping[Listed, Task],
) -> Registered:
    """Add all tasks that ``find`` lists; those in ``preloaded`` have been read.

    ``known`` returns the tids that the BPF programs know, ``add`` the tasks that they did not know before.
    The children of a known thread become known at their creation, so a reading without new threads is
    complete.
    """
    added: dict[int, Task] = {}
    for _ in range(_MAX_PASSES):
        listed = {entry.tid: entry for entry in find()}
        # After the reading of the list: threads that became known meanwhile need not be read.  Exited threads
        # are removed from the table, so a reused tid is not mistaken for a known thread.
        tids = known()
        unknown = iter([entry for tid, entry in listed.items() if tid not in tids])
        new: dict[int, Task] = {}
        while some := list(islice(unknown, _AT_ONCE)):
            new.update((task.id.tid, task) for task in add(_living(some, preloaded)))
        added.update(new)
        if not new:
            break
    # A thread that was listed after it had been added had not exited before, or a moment before: see
    # ``confirm``.
    confirm((task for tid, task in added.items() if tid in new or tid not in listed), forget)
    return Registered(not new, list(added.values()))


def confirm(added: Iterable[Task], forget: Forget) -> None:
    """Forget threads that had exited when they were added, but were still listed after that.

    To be called again a while after ``register``.  Later exits are seen by the BPF programs.
    """
    for task in added:
        now = find_task(task.tgid, task.id.tid)
        if now is None or now.exited:
            forget(task)


def _living(some: Iterable[Listed], preloaded: Mapping[Listed, Task]) -> list[Task]:
    found = (preloaded.get(entry) or find_task(entry.tgid, entry.tid) for entry in some)
    return [task for task in found if task is not None and not task.exiting]


def register_threads(
    pid: int, space: int, tracer: Tracer, preloaded: Mapping[Listed, Task]
) -> tuple[Registered, list[str]]:
    """Add all tasks that the address space of ``pid`` has at attach, also those of other thread groups.

    ``preloaded`` as for ``register``.  Also returns notes on what may be missing.  Raises CannotTrace,
    ProcessGone.
    """
    readings: list[Sharers] = []

    def find() -> list[Listed]:
        readings.append(same_address_space(pid))
        return [task for tgid in readings[-1].tgids for task in _tasks_of(tgid)]

    def add(tasks: Sequence[Task]) -> list[Task]:
        return tracer.add_threads(space, tasks)

    notes = []
    registered = register(find, tracer.known_threads, add, tracer.forget_thread, preloaded)
    if not registered.complete:
        notes.append("threads were created faster than they could be listed; some may be missing")
    if readings[-1].unchecked > 1:  # init alone can often not be compared, and shares with no process
        notes.append(f"{readings[-1].unchecked} processes could not be compared ({readings[-1].why})")
    return registered, notes


def _tasks_of(tgid: int) -> list[Listed]:
    try:
        return listed_tasks(tgid)
    except ProcessGone:
        return []
