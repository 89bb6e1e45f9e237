# SPDX-License-Identifier: Apache-2.0
"""The threads of a process: ids, names, states, start times."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from ebpftrace.model import ThreadId
from ebpftrace.procfs.access import VANISHED, ProcessGone, explain, reading, task_dir, task_ids
from ebpftrace.procfs.clock import monotonic_from_ticks

_PF_EXITING = 0x00000004
_PF_KTHREAD = 0x00200000
_EXITED_STATES = frozenset("ZXx")
_STAT_BYTES = 4096
"""More than the size of a ``stat`` file (a name of 15 bytes and 51 numbers), so that one read returns it
all."""
_STAT_FIELDS = 20
"""Fields after the name that are parsed, up to the start time."""


class Listed(NamedTuple):
    """One task in the list of its process; no two tasks are ever equal."""

    tgid: int
    tid: int
    inode: int
    """Inode of its directory in /proc.

    The kernel numbers them for each task (fs/proc/base.c, proc_pid_make_inode), so a task that reuses a tid
    has another inode.  The inode of one task may also change, if memory is short.
    """


class Task(NamedTuple):
    """One task as /proc/PID/task/TID/stat shows it (proc(5))."""

    id: ThreadId
    """``started_at`` is the start time in ns of CLOCK_MONOTONIC, with a resolution of a clock tick (10
    ms)."""
    tgid: int
    ppid: int
    """Parent *process*; 0 if it is outside our PID namespace."""
    name: str
    """The name that the target set: up to 15 arbitrary bytes, decoded with surrogateescape."""
    state: str
    flags: int
    """The kernel's PF_* flags."""
    group_size: int
    """Threads in the group, including an exited leader."""

    @property
    def exited(self) -> bool:
        """Whether it is a zombie or dead; other threads of its group may still live."""
        return self.state in _EXITED_STATES

    @property
    def exiting(self) -> bool:
        """Whether it makes no more system calls; the tracepoint of its exit may still be to come."""
        return bool(self.flags & _PF_EXITING) or self.exited

    @property
    def kernel_thread(self) -> bool:
        """Whether it runs only in the kernel."""
        return bool(self.flags & _PF_KTHREAD)


def parse_stat(tgid: int, stat: bytes) -> Task:
    """Parse the content of a ``stat`` file.  Raises ``ValueError`` if it is none.

    The name may contain spaces, parentheses and newlines, all unescaped; the fields after it contain none, so
    the name ends at the last parenthesis.
    """
    tid, _, rest = stat.partition(b" (")
    name, closed, rest = rest.rpartition(b") ")
    fields = rest.split(None, _STAT_FIELDS)
    if not closed or len(fields) < _STAT_FIELDS:
        raise ValueError("not a stat file")
    return Task(
        id=ThreadId(int(tid), monotonic_from_ticks(int(fields[19]))),
        tgid=tgid,
        ppid=int(fields[1]),
        name=name.decode("utf-8", "surrogateescape"),
        state=fields[0].decode("ascii", "replace"),
        flags=int(fields[6]),
        group_size=int(fields[17]),
    )


def read_task(tgid: int, tid: int) -> Task:
    """One thread of process ``tgid``.  Raises ``ProcessGone`` if it has exited, or ``CannotTrace``."""
    with reading(tgid, "threads"):
        return _read_task(tgid, tid)


def list_tasks(pid: int) -> list[Task]:
    """The threads of a process, leader first, without those that exit during the reading.

    An exited leader with live threads is in the list, as ``exited``.  A thread that is created during the
    reading may be missing.  Raises ``ProcessGone`` or ``CannotTrace``.
    """
    tasks = [task for task in (find_task(pid, tid) for tid in task_ids(pid)) if task]
    if not tasks:
        raise ProcessGone(pid)
    return tasks


def listed_tasks(pid: int) -> list[Listed]:
    """List the threads of a process without reading each.  Raises ``ProcessGone`` or ``CannotTrace``."""
    with reading(pid, "threads"), os.scandir(f"/proc/{pid}/task") as entries:
        return [Listed(pid, int(entry.name), entry.inode()) for entry in entries]


def find_task(tgid: int, tid: int) -> Optional[Task]:
    """One thread of process ``tgid``; None if it has exited.  Raises ``CannotTrace``."""
    try:
        return _read_task(tgid, tid)
    except VANISHED:
        return None
    except OSError as error:
        raise explain(error, tgid, "threads") from None


def _read_task(tgid: int, tid: int) -> Task:
    # With ten thousand threads each system call counts, so there is no second read for the end of the file.
    fd = os.open(f"{task_dir(tgid, tid)}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(fd, _STAT_BYTES)
    finally:
        os.close(fd)
    if not content:
        raise ProcessLookupError
    return parse_stat(tgid, content)
