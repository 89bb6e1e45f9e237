# SPDX-License-Identifier: Apache-2.0
"""Which thread groups live in one address space: kcmp(2)."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import (
    ProcessGone,
    live_task,
    process_ids,
    require_address_space,
    through_live_task,
)
from ebpftrace.process.tasks import read_task
from ebpftrace.syscalls import numbers

_KCMP_VM = 1


class Sharers(NamedTuple):
    """The thread groups of one address space, and how far that is known."""

    tgids: tuple[int, ...]
    """The group asked about first, then the others, ascending."""
    unchecked: int
    """Processes that could not be compared: they may share it too."""
    why: str
    """One line on why they could not; empty where all were."""


def same_address_space(pid: int, among: Optional[Sequence[int]] = None) -> Sharers:
    """All thread groups that we can see in the address space of process ``pid``; ``among`` these, if given.

    Others than its own are vfork children that have not called exec yet, and processes made by
    clone with CLONE_VM and without CLONE_THREAD.  One born during the look may be missed.
    Raises ``ProcessGone`` or ``CannotTrace``.
    """

    def use(tid: int) -> Sharers:
        sharers = _compare_all(pid, tid, process_ids() if among is None else among)
        # Two tasks without an address space count as equal: make sure that this one kept its own.
        require_address_space(pid, tid)
        return sharers

    return through_live_task(pid, "address space", use)


def one_of_each_space(pids: Sequence[int]) -> dict[int, list[int]]:
    """The first process of each address space, and those of ``pids`` that share it.

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
    """Whether thread and process share their address space, and why that cannot be said."""
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
    """A thread of the process that may have an address space; None for a kernel thread."""
    leader = read_task(tgid, tgid)
    if leader.kernel_thread:
        return None
    return live_task(tgid) if leader.exited else tgid


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _kcmp(tid: int, other: int) -> bool:
    """Whether two tasks share their address space; raises ``OSError`` as kcmp(2) says."""
    number = numbers().get("kcmp")  # no C library wraps it
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    arguments = (ctypes.c_long(value) for value in (number, tid, other, _KCMP_VM, 0, 0))
    result: int = _libc().syscall(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result == 0
