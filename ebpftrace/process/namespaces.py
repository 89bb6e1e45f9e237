# SPDX-License-Identifier: Apache-2.0
"""In which PID namespace we are: what the kernel calls PID 123 may be another process than ours."""

from __future__ import annotations

import os
from typing import NamedTuple

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import read_small, task_dir

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Fixed inode of the first PID namespace (kernel include/linux/proc_ns.h, PROC_PID_INIT_INO)."""


_INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""Likewise (PROC_USER_INIT_INO)."""


def in_initial_user_namespace() -> bool:
    """Whether our capabilities are the host's (user_namespaces(7)); also where that can't be seen."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE  # noqa: PTH116
    except OSError:
        return True


class PidNamespace(NamedTuple):
    """A PID namespace."""

    inode: int
    """Names it (namespaces(7))."""

    @property
    def initial(self) -> bool:
        """It is the host's: PIDs are what BPF programs see without translation."""
        return self.inode == _INITIAL_PID_NAMESPACE


def own_pid_namespace() -> PidNamespace:
    """The PID namespace of this process.  Raises ``CannotTrace``."""
    try:
        status = os.stat("/proc/self/ns/pid")  # noqa: PTH116
    except OSError as error:
        raise CannotTrace(f"cannot read /proc/self/ns/pid: {error.strerror}", "mount /proc") from None
    return PidNamespace(status.st_ino)


def numbers_of(tgid: int, tid: int) -> list[int]:
    """What each PID namespace, from ours to its own, calls a thread (proc(5), NSpid); empty if gone."""
    try:
        status = read_small(f"{task_dir(tgid, tid)}/status")
    except OSError:
        return []
    for line in status.splitlines():
        # The name of a thread is escaped in this file, so no line of it can be forged.
        if line.startswith(b"NSpid:"):
            return [int(number) for number in line.split()[1:]]
    return []
