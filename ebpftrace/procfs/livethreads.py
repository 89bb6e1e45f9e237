# SPDX-License-Identifier: Apache-2.0
"""The live threads of an address space: names, numbers, stack pointers, and the calls they sleep in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.model import LiveThread
from ebpftrace.procfs.access import ProcessGone, read_small, task_ids
from ebpftrace.procfs.namespaces import numbers_of
from ebpftrace.procfs.tasks import Task, list_tasks

_READINGS = 3
"""Readings of the stack pointers; a thread that is not always running sleeps at one of them."""


class Sleeper(NamedTuple):
    """A thread that is not running."""

    stack_pointer: int
    call: Optional[int]
    """Number of the system call that it sleeps in; None if in none, as during a page fault."""


def read_sleepers(tgids: Iterable[int]) -> dict[int, Sleeper]:
    """The threads of these processes that are not running, by tid.

    They are read from ``/proc/PID/task/TID/syscall`` (proc(5)), which does not stop the thread.  Threads
    that run, have exited or may not be read are left out; so are all if the kernel lacks that file.
    """
    sleepers = {}
    for tgid in tgids:
        with suppress(CannotTrace):
            for tid in task_ids(tgid):
                with suppress(OSError):
                    # The kernel prints the call's number, six arguments, stack pointer and program counter;
                    # "-1 SP PC" outside a call; "running" for a thread that runs.
                    fields = read_small(f"/proc/{tgid}/task/{tid}/syscall").split()
                    if len(fields) >= 3:
                        number = int(fields[0])
                        sleepers[tid] = Sleeper(int(fields[-2], 16), None if number < 0 else number)
    return sleepers


def live_tids(pid: int, groups: Sequence[int] = ()) -> frozenset[int]:
    """Tids of all threads of process ``pid`` and of the thread groups that share its address space.

    They are numbers of the target's own PID namespace, as glibc stores them (clone(2), CLONE_PARENT_SETTID),
    whereas /proc lists tids of ours.  The last number of ``NSpid`` is the target's (proc(5)).  Raises
    ``ProcessGone`` if no thread lives, or ``CannotTrace``.
    """
    own = task_ids(pid)
    tids = [(pid, tid) for tid in own]
    for group in groups:
        if group != pid:
            with suppress(ProcessGone):
                tids += [(group, tid) for tid in task_ids(group)]
    if len(numbers_of(pid, own[0])) <= 1:
        return frozenset(tid for _, tid in tids)
    return frozenset(number for tgid, tid in tids for number in numbers_of(tgid, tid)[-1:])


def read_live_threads(pid: int, groups: Sequence[int] = ()) -> list[LiveThread]:
    """The threads of process ``pid`` and of other thread groups in its address space.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    tasks = _living(pid)
    tgids = (pid, *(group for group in groups if group != pid))
    for group in tgids[1:]:
        with suppress(ProcessGone):
            tasks += _living(group)
    pointers: dict[int, int] = {}
    for _ in range(_READINGS):
        found = read_sleepers(tgids)
        pointers = {**{tid: sleeper.stack_pointer for tid, sleeper in found.items()}, **pointers}
        if all(task.id.tid in pointers for task in tasks):
            break
    nested = bool(tasks) and len(numbers_of(tasks[0].tgid, tasks[0].id.tid)) > 1
    return [_live_thread(task, pointers.get(task.id.tid), nested) for task in tasks]


def _living(pid: int) -> list[Task]:
    return [task for task in list_tasks(pid) if not task.exited]


def _live_thread(task: Task, pointer: Optional[int], nested: bool) -> LiveThread:
    numbers = numbers_of(task.tgid, task.id.tid) if nested else []
    return LiveThread(task.id.tid, numbers[-1] if numbers else task.id.tid, task.name, pointer)
