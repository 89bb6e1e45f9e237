# SPDX-License-Identifier: Apache-2.0
"""The threads of a process: ids, names, states, start times."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

from ebpftrace.model import ThreadId
from ebpftrace.process.clock import monotonic_from_ticks
from ebpftrace.process.procfs import VANISHED, ProcessGone, explain, reading, task_dir, task_ids

_PF_EXITING = 0x00000004
_PF_KTHREAD = 0x00200000
_EXITED_STATES = frozenset("ZXx")
_STAT_BYTES = 4096
"""More than a ``stat`` file has: a name of 15 bytes and 51 numbers.  The kernel hands it out at once."""
_STAT_FIELDS = 20
"""Of those behind the name: up to the start time."""


class Listed(NamedTuple):
    """One task in the list of its process; no other task ever is equal to it."""

    tgid: int
    tid: int
    inode: int
    """Of its directory in /proc.

    The kernel gives each task a number of its own (fs/proc/base.c, proc_pid_make_inode): one that has the
    tid of a former has another inode.  A task's may change too, when memory is short.
    """


class Task(NamedTuple):
    """One task as /proc/PID/task/TID/stat shows it (proc(5))."""

    id: ThreadId
    """Its ``born`` is the start time in CLOCK_MONOTONIC ns, to a clock tick (10 ms)."""
    tgid: int
    ppid: int
    """Parent *process*; 0 where it is outside our PID namespace."""
    name: str
    """As the target set it, up to 15 bytes of anything, decoded with surrogateescape."""
    state: str
    flags: int
    """The kernel's PF_* flags."""
    group_size: int
    """Threads in the group, an exited leader included."""

    @property
    def exited(self) -> bool:
        """It is a zombie or beyond: as a group leader it may have been outlived by its threads."""
        return self.state in _EXITED_STATES

    @property
    def exiting(self) -> bool:
        """It makes no calls any more, whether a tracepoint has told of its end already or is about to."""
        return bool(self.flags & _PF_EXITING) or self.exited

    @property
    def kernel_thread(self) -> bool:
        """It runs in the kernel only."""
        return bool(self.flags & _PF_KTHREAD)


def parse_stat(tgid: int, stat: bytes) -> Task:
    """Parse the content of a ``stat`` file; raises ``ValueError`` where it is not one.

    The name may hold spaces, parentheses and newlines, all unescaped; what follows it holds none,
    so it ends at the last parenthesis.
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
    """One thread of process ``tgid``.  Raises ``ProcessGone`` where it has exited, or ``CannotTrace``."""
    with reading(tgid, "threads"):
        return _read_task(tgid, tid)


def list_tasks(pid: int) -> list[Task]:
    """The threads of a process, leader first; those that exit while we read are left out.

    An exited leader with live threads is in the list, ``exited`` says so.  The list is not of one
    moment: a thread born while it is read may be missing.  Raises ``ProcessGone`` or ``CannotTrace``.
    """
    tasks = [task for task in (find_task(pid, tid) for tid in task_ids(pid)) if task]
    if not tasks:
        raise ProcessGone(pid)
    return tasks


def listed_tasks(pid: int) -> list[Listed]:
    """The threads of a process, without a look at each.  Raises ``ProcessGone`` or ``CannotTrace``."""
    with reading(pid, "threads"), os.scandir(f"/proc/{pid}/task") as entries:
        return [Listed(pid, int(entry.name), entry.inode()) for entry in entries]


def find_task(tgid: int, tid: int) -> Optional[Task]:
    """One thread of process ``tgid``; None where it has exited.  Raises ``CannotTrace``."""
    try:
        return _read_task(tgid, tid)
    except VANISHED:
        return None
    except OSError as error:
        raise explain(error, tgid, "threads") from None


def _read_task(tgid: int, tid: int) -> Task:
    # Of ten thousand threads each call counts: no second read that only tells of the end.
    fd = os.open(f"{task_dir(tgid, tid)}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(fd, _STAT_BYTES)
    finally:
        os.close(fd)
    if not content:
        raise ProcessLookupError
    return parse_stat(tgid, content)
