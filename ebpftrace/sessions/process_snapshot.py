# SPDX-License-Identifier: Apache-2.0
"""A snapshot of a target: everything that a report needs from /proc and the target's memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

from ebpftrace.model import ReadState, ThreadLists
from ebpftrace.nptl import read_thread_lists
from ebpftrace.procfs.livethreads import Sleeper, read_sleepers
from ebpftrace.procfs.maps import read_maps, read_smaps
from ebpftrace.procfs.memory import Memory
from ebpftrace.procfs.sharing import same_address_space
from ebpftrace.procfs.status import MemoryUse, read_memory_use
from ebpftrace.vmas import Vmas

GONE = ThreadLists(ReadState.ABSENT, why="the target has exited")


class ProcessSnapshot(NamedTuple):
    """A snapshot of a process."""

    read_at: int
    """ns of CLOCK_MONOTONIC, before the first reading."""
    vmas: Vmas
    thread_lists: ThreadLists
    memory: Optional[MemoryUse]
    """None if the process has exited."""
    sleepers: dict[int, Sleeper]
    """By tid; see ``read_sleepers``."""
    groups: Sequence[int] = ()
    """The thread groups in the address space, that of the process first."""
    read_until: Optional[int] = None
    """ns of CLOCK_MONOTONIC, after the thread lists were read."""
    lists_read_at: Optional[int] = None
    """When the thread lists were read, if that was before the process exited; None: with the rest."""


def read_snapshot(pid: int, earlier: Optional[ThreadLists] = None) -> ProcessSnapshot:
    """Take a snapshot; ``earlier`` as for ``read_thread_lists``.  Raises ProcessGone, CannotTrace."""
    return _read(pid, earlier, read_smaps, read_sleepers)


def read_quick_snapshot(pid: int, earlier: Optional[ThreadLists] = None) -> ProcessSnapshot:
    """Like ``read_snapshot``, but quick: no resident sizes, no stack pointers."""
    return _read(pid, earlier, read_maps, lambda _: {})


def _read(
    pid: int,
    earlier: Optional[ThreadLists],
    read_vmas: Callable[[int], Vmas],
    read_threads: Callable[[Sequence[int]], dict[int, Sleeper]],
) -> ProcessSnapshot:
    read_at = time.monotonic_ns()
    vmas = read_vmas(pid)
    groups = same_address_space(pid).tgids
    thread_lists = _read_thread_lists(pid, vmas, groups, earlier)
    read_until = time.monotonic_ns()
    return ProcessSnapshot(
        read_at=read_at,
        vmas=vmas,
        thread_lists=thread_lists,
        memory=read_memory_use(pid),
        sleepers=read_threads(groups),
        groups=groups,
        read_until=read_until,
    )


def empty_snapshot(last: Optional[ProcessSnapshot] = None) -> ProcessSnapshot:
    """The snapshot of a process that has exited: its thread lists as they were read last, if they were."""
    gone = ProcessSnapshot(time.monotonic_ns(), Vmas(), GONE, None, {})
    if last is None:
        return gone
    return gone._replace(thread_lists=last.thread_lists, lists_read_at=last.read_at)


def read_thread_lists_of(pid: int, vmas: Vmas, *, confirm: bool = True) -> ThreadLists:
    """Read glibc's thread lists of the address space of a process.  Raises as ``read_snapshot``.

    ``confirm`` is as for ``read_thread_lists``.
    """
    return _read_thread_lists(pid, vmas, same_address_space(pid).tgids, confirm=confirm)


def _read_thread_lists(
    pid: int,
    vmas: Vmas,
    groups: Sequence[int],
    earlier: Optional[ThreadLists] = None,
    *,
    confirm: bool = True,
) -> ThreadLists:
    others = [tgid for tgid in groups if tgid != pid]
    with Memory(pid) as memory:
        return read_thread_lists(pid, vmas, memory, others, earlier, confirm=confirm)
