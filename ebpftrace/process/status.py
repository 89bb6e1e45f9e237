# SPDX-License-Identifier: Apache-2.0
"""Small facts about a process: sizes, names, limits, age."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.model import TargetInfo
from ebpftrace.process.procfs import read_small, task_dir, through_live_task
from ebpftrace.process.tasks import read_task

_MAX_MAP_COUNT = "/proc/sys/vm/max_map_count"
_PID_MAX = "/proc/sys/kernel/pid_max"


class MemoryUse(NamedTuple):
    """Size of an address space in bytes (proc(5), statm)."""

    virt: int
    rss: int
    """May be behind by some pages for each CPU: the kernel sums its counters up lazily."""


def read_memory_use(pid: int) -> MemoryUse:
    """Virtual and resident size now.  Raises ``ProcessGone`` or ``CannotTrace``."""

    def use(tid: int) -> MemoryUse:
        virt, rss = read_small(f"{task_dir(pid, tid)}/statm").split()[:2]
        if virt == b"0":
            raise ProcessLookupError
        page = os.sysconf("SC_PAGE_SIZE")
        return MemoryUse(int(virt) * page, int(rss) * page)

    return through_live_task(pid, "memory size", use)


def read_exe(pid: int) -> str:
    """Path of the program as the kernel prints it, `` (deleted)`` included, in the target's own root.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    # Path.readlink would tidy up a name that must stay as it is.
    return through_live_task(pid, "program file", lambda tid: os.readlink(f"{task_dir(pid, tid)}/exe"))  # noqa: PTH115


def read_target_info(pid: int) -> TargetInfo:
    """Name, program and number of live threads, as it is now, for the head of a report.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    threads = live_threads(pid)
    return TargetInfo(pid, read_task(pid, pid).name, read_exe(pid), threads=threads, threads_start=threads)


def live_threads(pid: int) -> int:
    """How many threads of the process have not exited.  Raises ``ProcessGone`` or ``CannotTrace``."""
    leader = read_task(pid, pid)
    return leader.group_size - leader.exited


def known_max_map_count() -> Optional[int]:
    """Most mappings that a process may have, None where that cannot be read."""
    try:
        return max_map_count()
    except CannotTrace:
        return None


def max_map_count() -> int:
    """Most mappings that a process may have: vm.max_map_count.  Raises ``CannotTrace``."""
    return _limit(_MAX_MAP_COUNT)


def pid_max() -> int:
    """Number above those of all tasks: kernel.pid_max.  Raises ``CannotTrace``."""
    return _limit(_PID_MAX)


def _limit(path: str) -> int:
    try:
        return int(read_small(path))
    except OSError as error:
        raise CannotTrace(f"cannot read {path}: {error.strerror}") from None
