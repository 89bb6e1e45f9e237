# SPDX-License-Identifier: Apache-2.0
"""Our user and PID namespace, and the numbers of a thread in each PID namespace it is in."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.access import read_small, task_dir

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Fixed inode of the first PID namespace (kernel include/linux/proc_ns.h, PROC_PID_INIT_INO)."""


_INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""Fixed inode of the first user namespace (PROC_USER_INIT_INO)."""


def in_initial_user_namespace() -> bool:
    """Whether our capabilities are the host's (user_namespaces(7)); True if that can't be read."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE  # noqa: PTH116
    except OSError:
        return True


class PidNamespace(NamedTuple):
    """A PID namespace."""

    inode: int
    """Identifies it (namespaces(7))."""

    @property
    def initial(self) -> bool:
        """Whether it is the host's, in which PIDs are the numbers that BPF programs see."""
        return self.inode == _INITIAL_PID_NAMESPACE


def own_pid_namespace() -> PidNamespace:
    """The PID namespace of this process.  Raises ``CannotTrace``."""
    try:
        status = os.stat("/proc/self/ns/pid")  # noqa: PTH116
    except OSError as error:
        raise CannotTrace(f"cannot read /proc/self/ns/pid: {error.strerror}", "mount /proc") from None
    return PidNamespace(status.st_ino)


def inner_number(tgid: int, tid: int) -> Optional[int]:
    """Number of a thread in its own PID namespace; None where that is ours, or the thread exited."""
    numbers = numbers_of(tgid, tid)
    return numbers[-1] if len(numbers) > 1 else None


def numbers_of(tgid: int, tid: int) -> list[int]:
    """Numbers of a thread in the PID namespaces from ours to its own (proc(5), NSpid); empty if it exited."""
    try:
        status = read_small(f"{task_dir(tgid, tid)}/status")
    except OSError:
        return []
    for line in status.splitlines():
        # The name of a thread is escaped in this file, so no line can be forged.
        if line.startswith(b"NSpid:"):
            return [int(number) for number in line.split()[1:]]
    return []
