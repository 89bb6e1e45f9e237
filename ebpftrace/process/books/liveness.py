# SPDX-License-Identifier: Apache-2.0
"""Which threads live, by the numbers that the target itself uses for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ebpftrace.process.namespaces import numbers_of
from ebpftrace.process.procfs import ProcessGone, task_ids


def live_tids(pid: int, groups: Sequence[int] = ()) -> frozenset[int]:
    """Tids of all threads of process ``pid`` and of the thread groups that share its address space.

    glibc notes the tid that the PID namespace of the *target* gave a thread (clone(2),
    CLONE_PARENT_SETTID); /proc lists tids of our own.  The last number of ``NSpid`` is the target's
    (proc(5)).  Raises ``ProcessGone`` where none lives, or ``CannotTrace``.
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
