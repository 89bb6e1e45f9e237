# SPDX-License-Identifier: Apache-2.0
"""The process to trace: does it exist, can it be traced, and has it exited?"""

from __future__ import annotations

import os
import select
import struct
from typing import Optional

from ebpftrace.elf import CLASS_32, EM_X86_64, MAGIC
from ebpftrace.errors import CannotTrace, how_to_be_permitted
from ebpftrace.model import ThreadId
from ebpftrace.procfs.access import (
    VANISHED,
    ProcessGone,
    explain,
    live_task,
    read_small,
    reading,
    task_dir,
    through_live_task,
)
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.tasks import Task, read_task

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_ELF_HEADER_SIZE = 20
_END_OF_32_BIT = 1 << 32
_VSYSCALL = "[vsyscall]"


class Target:
    """A process that can be traced, held by a pidfd (pidfd_open(2)); made by ``open_target``.

    While ``exited`` is false, its PID denotes this process.  The pidfd becomes readable when the last thread
    has exited, even before the parent has waited; a leader that exits before other threads does not make it
    readable (seen on Linux 6.18; kernel/exit.c, thread_group_exited).
    """

    def __init__(self, leader: Task, pidfd: int) -> None:
        self.pid = leader.tgid
        self.id: ThreadId = leader.id
        self._pidfd = pidfd

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The pidfd, for poll and select; it belongs to this object."""
        return self._pidfd

    def close(self) -> None:
        """Close the pidfd.  May be called again."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def wait(self, seconds: float) -> bool:
        """Wait at most this long until the process has exited; returns whether it has."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    @property
    def exited(self) -> bool:
        """Whether all its threads have exited."""
        return self.wait(0)


class ExitedTarget:
    """A process that exited before a pidfd could be opened."""

    exited = True

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def close(self) -> None:
        """Do nothing, since there is no pidfd."""


def hold(pid: int, at: int) -> Optional[Target]:
    """Open the process that had this PID at a moment (ns of CLOCK_MONOTONIC); None if it has exited."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        leader = read_task(pid, pid)
    except CannotTrace:
        leader = None
    if leader is None or leader.id.started_at > at:  # another process has the PID now
        os.close(pidfd)
        return None
    return Target(leader, pidfd)


def open_target(pid: int) -> Target:
    """Check that process ``pid`` can be traced, and open it.

    Raises ``CannotTrace`` with one line that says why not, and the remedy.
    """
    _refuse_thread(pid)
    try:
        pidfd = os.pidfd_open(pid)
    except VANISHED:
        raise ProcessGone(pid) from None
    except OSError as error:
        raise CannotTrace(f"cannot hold process {pid} (pidfd_open): {error.strerror}") from None
    try:
        leader = read_task(pid, pid)
        target = Target(leader, pidfd)
        _refuse_without_memory(leader)
        _refuse_unreadable(pid)
        refuse_32_bit(pid)
        if target.exited:
            raise ProcessGone(pid)
    except BaseException:
        os.close(pidfd)
        raise
    return target


def _refuse_thread(pid: int) -> None:
    try:
        status = read_small(f"/proc/{pid}/status")
    except VANISHED:
        raise _not_there(pid) from None
    except OSError as error:
        raise explain(error, pid, "status") from None
    # A newline in the name is escaped here, so the line is the kernel's own.
    tgids = [line.split()[1] for line in status.splitlines() if line.startswith(b"Tgid:")]
    tgid = int(tgids[0]) if tgids else pid
    if tgid != pid:
        raise CannotTrace(f"{pid} is a thread of process {tgid}, not a process", f"use -p {tgid}")


def _not_there(pid: int) -> CannotTrace:
    """The exception for a PID that is not in /proc: it is not in use, or /proc is mounted with hidepid."""
    try:
        if pid > 0:
            os.kill(pid, 0)
            remedy = f"{how_to_be_permitted()}; or remount /proc without hidepid"
            return CannotTrace(f"/proc hides process {pid}", remedy)
    except PermissionError:
        return CannotTrace(f"not permitted to read process {pid}", how_to_be_permitted())
    except (OSError, OverflowError):
        pass
    return CannotTrace(f"there is no process {pid}")


def _refuse_without_memory(leader: Task) -> None:
    pid = leader.tgid
    if leader.kernel_thread:
        raise CannotTrace(f"{pid} is a kernel thread: it has no user memory to trace")
    if leader.exited and leader.group_size <= 1:
        raise CannotTrace(
            f"process {pid} is a zombie: it has exited, its parent {leader.ppid} has not waited for it"
        )
    live_task(pid)


def _refuse_unreadable(pid: int) -> None:
    """Raise ``CannotTrace`` without the kernel's permission to read the process (ptrace(2), access modes)."""

    def use(tid: int) -> None:
        os.close(os.open(f"{task_dir(pid, tid)}/maps", os.O_RDONLY | os.O_CLOEXEC))

    through_live_task(pid, "memory map", use)


def refuse_32_bit(pid: int) -> None:
    """Raise ``CannotTrace`` if a process runs a program whose calls can't be traced, or ``ProcessGone``."""
    try:
        header = through_live_task(pid, "program file", lambda tid: _elf_header(pid, tid))
    except ProcessGone:
        raise
    except CannotTrace:
        # On a FUSE file system not even root may read a user's files.  64-bit programs map high addresses.
        if max((vma.end for vma in read_maps(pid) if vma.path != _VSYSCALL), default=0) > _END_OF_32_BIT:
            return
        raise
    _refuse_elf_32(header, f"process {pid} runs")


def refuse_32_bit_file(path: str, name: str) -> None:
    """Raise ``CannotTrace`` if a file is such a program; ``name`` is its name in the message."""
    try:
        header = _header(os.open(path, _OPEN_FLAGS))
    except OSError:
        return  # a file that may be executed need not be readable
    _refuse_elf_32(header, f"{name} is")


def _refuse_elf_32(header: bytes, subject: str) -> None:
    if len(header) < _ELF_HEADER_SIZE or header[:4] != MAGIC or header[4] != CLASS_32:
        return
    (machine,) = struct.unpack_from("<H", header, 18)
    kind = "an x32" if machine == EM_X86_64 else "a 32-bit"
    raise CannotTrace(f"{subject} {kind} program: only 64-bit programs can be traced")


def _elf_header(pid: int, tid: int) -> bytes:
    fd = os.open(f"{task_dir(pid, tid)}/exe", _OPEN_FLAGS)
    with reading(pid, "program file"):
        return _header(fd)


def _header(fd: int) -> bytes:
    """Read the start of a file, and close it."""
    try:
        return os.read(fd, _ELF_HEADER_SIZE)
    finally:
        os.close(fd)
