# SPDX-License-Identifier: Apache-2.0
"""Which thread groups share an address space, by kcmp(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.libc import syscall
from ebpftrace.procfs.access import (
    ProcessGone,
    live_task,
    process_ids,
    require_address_space,
    through_live_task,
)
from ebpftrace.procfs.tasks import read_task
from ebpftrace.syscall_numbers import numbers

_KCMP_VM = 1


class Sharers(NamedTuple):
    """The thread groups of one address space, as far as they are known."""

    tgids: tuple[int, ...]
    """The process that was asked for, then the others, ascending."""
    unchecked: int
    """Number of processes that could not be compared, and so may share the address space too."""
    why: str
    """One line on why they could not be compared; empty if all were."""


def same_address_space(pid: int, among: Optional[Sequence[int]] = None) -> Sharers:
    """All visible thread groups in the address space of process ``pid``; only those in ``among``, if given.

    Besides its own there may be vfork children before their exec, and processes created by clone with
    CLONE_VM and without CLONE_THREAD.  One that is created meanwhile may be missed.  Raises ``ProcessGone``
    or ``CannotTrace``.
    """

    def use(tid: int) -> Sharers:
        sharers = _compare_all(pid, tid, process_ids() if among is None else among)
        # kcmp takes two tasks without an address space for equal: make sure that this one still has its own.
        require_address_space(pid, tid)
        return sharers

    return through_live_task(pid, "address space", use)


def one_of_each_space(pids: Sequence[int]) -> dict[int, list[int]]:
    """Map the first process of each address space to the others of ``pids`` that share it.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    sharers: dict[int, list[int]] = {}
    first_of: dict[int, int] = {}
    for pid in pids:
        first = first_of.get(pid)
        if first is None:
            sharers[pid] = []
            first_of.update(dict.fromkeys(same_address_space(pid, pids).tgids, pid))
        else:
            sharers[first].append(pid)
    return sharers


def _compare_all(pid: int, tid: int, tgids: Sequence[int]) -> Sharers:
    others = {tgid: _compare(tid, tgid) for tgid in tgids if tgid != pid}
    refusals = [why for _, why in others.values() if why]
    sharing = (pid, *(tgid for tgid, (equal, _) in others.items() if equal))
    return Sharers(sharing, len(refusals), f"kcmp: {refusals[0]}" if refusals else "")


def _compare(tid: int, tgid: int) -> tuple[bool, str]:
    """Whether a thread and a process share their address space, and why that can't be known."""
    try:
        member = _comparable_task(tgid)
        return member is not None and _kcmp(tid, member), ""
    except (ProcessGone, ProcessLookupError):
        return False, ""
    except CannotTrace as refusal:
        return False, refusal.what
    except OSError as error:
        return False, error.strerror or str(error)


def _comparable_task(tgid: int) -> Optional[int]:
    """A thread of the process that may have an address space; None if it is a kernel thread."""
    leader = read_task(tgid, tgid)
    if leader.kernel_thread:
        return None
    return live_task(tgid) if leader.exited else tgid


def _kcmp(tid: int, other: int) -> bool:
    """Whether two tasks share their address space.  Raises ``OSError`` as kcmp(2) says."""
    number = numbers().get("kcmp")  # no C library wraps it
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return syscall(number, tid, other, _KCMP_VM, 0, 0) == 0
