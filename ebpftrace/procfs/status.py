# SPDX-License-Identifier: Apache-2.0
"""Small facts about a process and its limits: size, program, threads, vm.max_map_count."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.glibc import Cores
from ebpftrace.model import TargetInfo
from ebpftrace.procfs.access import read_small, task_dir, through_live_task
from ebpftrace.procfs.namespaces import inner_number
from ebpftrace.procfs.tasks import read_task
from ebpftrace.units import PAGE

_MAX_MAP_COUNT = "/proc/sys/vm/max_map_count"
_PID_MAX = "/proc/sys/kernel/pid_max"


class MemoryUse(NamedTuple):
    """Size of an address space in bytes (proc(5), statm)."""

    virt: int
    rss: int
    """It may lack some pages for each CPU, because the kernel adds up per-CPU counters lazily."""


def read_memory_use(pid: int) -> MemoryUse:
    """Virtual and resident size now.  Raises ``ProcessGone`` or ``CannotTrace``."""

    def use(tid: int) -> MemoryUse:
        virt, rss = read_small(f"{task_dir(pid, tid)}/statm").split()[:2]
        if virt == b"0":
            raise ProcessLookupError
        return MemoryUse(int(virt) * PAGE, int(rss) * PAGE)

    return through_live_task(pid, "memory size", use)


def read_exe(pid: int) -> str:
    """Path of the program as the kernel prints it, with `` (deleted)``, in the target's own root.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    # Path.readlink would normalize the name.
    return through_live_task(pid, "program file", lambda tid: os.readlink(f"{task_dir(pid, tid)}/exe"))  # noqa: PTH115


def read_target_info(pid: int) -> TargetInfo:
    """Name, program and number of live threads now, for the head of a report.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    threads = live_threads(pid)
    name = read_task(pid, pid).name
    return TargetInfo(pid, name, read_exe(pid), threads, threads, inner_pid=inner_number(pid, pid))


def live_threads(pid: int) -> int:
    """Number of threads of the process that have not exited.  Raises ``ProcessGone`` or ``CannotTrace``."""
    leader = read_task(pid, pid)
    return leader.group_size - leader.exited


def read_cores(pid: int) -> Cores:
    """The CPUs of the machine, and those that a process may run on; all of them if it has exited."""
    online = os.cpu_count() or 1
    try:
        return Cores(online, len(os.sched_getaffinity(pid)))
    except OSError:
        return Cores(online, online)


def known_max_map_count() -> Optional[int]:
    """``max_map_count()``, or None if it can't be read."""
    try:
        return max_map_count()
    except CannotTrace:
        return None


def max_map_count() -> int:
    """Limit of mappings per process: vm.max_map_count.  Raises ``CannotTrace``."""
    return _limit(_MAX_MAP_COUNT)


def pid_max() -> int:
    """Tids are below this number: kernel.pid_max.  Raises ``CannotTrace``."""
    return _limit(_PID_MAX)


def _limit(path: str) -> int:
    try:
        return int(read_small(path))
    except OSError as error:
        raise CannotTrace(f"cannot read {path}: {error.strerror}") from None
