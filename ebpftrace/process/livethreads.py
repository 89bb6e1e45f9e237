# SPDX-License-Identifier: Apache-2.0
"""The tasks that live in an address space: names, numbers, and where their stacks are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Optional

from ebpftrace.model import LiveThread
from ebpftrace.process.namespaces import numbers_of
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.sleepers import read_sleepers
from ebpftrace.process.tasks import Task, list_tasks

_LOOKS = 3
"""Where some thread was running: one that is not always at work waits at one of them."""


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
    for _ in range(_LOOKS):
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
