# SPDX-License-Identifier: Apache-2.0
"""Finds processes by the name of a program, or by a cgroup or container."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.access import VANISHED, process_ids, read_small, require_address_space
from ebpftrace.procfs.tasks import find_task
from ebpftrace.text import escape

_NAME_BYTES = 15
"""Bytes of a name that the kernel keeps (TASK_COMM_LEN without the NUL, include/linux/sched.h)."""
_CONTAINER_ID = re.compile(r"[0-9a-f]{12,64}", re.ASCII)
_MAX_CGROUPS = 10_000
"""Limit of the directories below a cgroup that are read."""


def processes_named(name: str) -> list[int]:
    """PIDs of the processes that have this name or run a program of this file name, ascending.

    Kernel threads, zombies and this process are left out.  Raises ``CannotTrace`` if there is none.
    """
    wanted = os.fsencode(name)

    def is_named(pid: int) -> bool:
        task = find_task(pid, pid)
        if task is None:
            return False
        if os.fsencode(task.name) == wanted and len(wanted) <= _NAME_BYTES:
            return True
        return wanted in (_program(pid), _first_argument(pid))

    pids = _matching(is_named)
    if not pids:
        raise CannotTrace(f"no process is named {escape(name)}", "ebpftrace scan lists what runs here")
    return pids


def processes_in_cgroup(cgroup: str) -> list[int]:
    """PIDs of the processes in a cgroup and those below it, ascending.

    ``cgroup`` is a directory such as ``/sys/fs/cgroup/system.slice/nginx.service``, a path as in
    ``/proc/PID/cgroup``, a unit such as ``nginx.service``, or at least 12 leading digits of a container's id.
    Kernel threads, zombies and this process are left out.  Raises ``CannotTrace`` if there is none.
    """
    if Path(cgroup, "cgroup.procs").exists():
        listed = set(_listed_below(Path(cgroup)))
        pids = _matching(lambda pid: pid in listed)
    else:
        pids = _matching(lambda pid: any(is_in_cgroup(path, cgroup) for path in _cgroups(pid)))
    if not pids:
        raise CannotTrace(
            f"no process is in a cgroup {escape(cgroup)}",
            "give a directory below /sys/fs/cgroup, a systemd unit, or a container's id",
        )
    return pids


def is_in_cgroup(path: str, wanted: str) -> bool:
    """Whether a path from ``/proc/PID/cgroup`` is the wanted cgroup, or below it."""
    if wanted.startswith("/"):
        prefix = wanted.rstrip("/")
        return path == prefix or path.startswith(f"{prefix}/")
    parts = path.split("/")
    # A container's directory is docker-ID.scope, cri-containerd-ID.scope, libpod-ID.scope, or just ID.
    is_container = _CONTAINER_ID.fullmatch(wanted) is not None
    return any(part == wanted or (is_container and _has_id(part, wanted)) for part in parts)


def _has_id(part: str, wanted: str) -> bool:
    return any(word.startswith(wanted) for word in re.split(r"[-.:]", part))


def _matching(chosen: Callable[[int], bool]) -> list[int]:
    own = os.getpid()
    return [pid for pid in process_ids() if pid != own and chosen(pid) and _has_memory(pid)]


def _has_memory(pid: int) -> bool:
    """Whether any thread has an address space: it is no kernel thread, and not all threads have exited."""
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
    except OSError:
        return False
    return any(_task_has_memory(pid, tid) for tid in tids)


def _task_has_memory(pid: int, tid: int) -> bool:
    try:
        require_address_space(pid, tid)
    except OSError:
        return False
    return True


def _program(pid: int) -> Optional[bytes]:
    """File name of the program; None if it can't be read."""
    try:
        target = os.readlink(f"/proc/{pid}/exe".encode())  # noqa: PTH115
    except OSError:
        return None
    return posixpath.basename(target.removesuffix(b" (deleted)"))


def _first_argument(pid: int) -> Optional[bytes]:
    """File name in the first argument, by which busybox and others choose what to do."""
    try:
        arguments = read_small(f"/proc/{pid}/cmdline")
    except OSError:
        return None
    return posixpath.basename(arguments.partition(b"\0")[0])


def _cgroups(pid: int) -> list[str]:
    """Paths of the cgroups of a process, one for each hierarchy (cgroups(7))."""
    try:
        lines = os.fsdecode(read_small(f"/proc/{pid}/cgroup")).split("\n")
    except OSError:
        return []
    return [line.split(":", 2)[2] for line in lines if line.count(":") >= 2]


def _listed_below(directory: Path) -> Iterator[int]:
    """PIDs in a cgroup's directory and in those below it.  Raises ``CannotTrace``."""
    waiting = [directory]
    for _ in range(_MAX_CGROUPS):
        if not waiting:
            return
        current = waiting.pop()
        try:
            words = (current / "cgroup.procs").read_text("ascii").split()
            with os.scandir(current) as entries:
                waiting += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except VANISHED:
            continue
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise CannotTrace(f"cannot read the processes of cgroup {escape(str(current))}: {why}") from None
        # The kernel prints 0 for a process outside our PID namespace.
        yield from (int(word) for word in words if word.isdecimal() and word != "0")
