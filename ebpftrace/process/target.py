# SPDX-License-Identifier: Apache-2.0
"""The process to trace: is there one, can it be traced, does it still live."""

from __future__ import annotations

import os
import select
import struct
from types import TracebackType
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.model import ThreadId
from ebpftrace.process.maps import read_maps
from ebpftrace.process.procfs import (
    VANISHED,
    ProcessGone,
    explain,
    how_to_be_permitted,
    live_task,
    read_small,
    reading,
    task_dir,
    through_live_task,
)
from ebpftrace.process.tasks import Task, read_task

_ELF_MAGIC = b"\x7fELF"
_ELF_CLASS_32 = 1
_ELF_MACHINE_X86_64 = 62
_TO_LOOK_AT = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_ELF_HEADER_SIZE = 20
_END_OF_32_BIT = 1 << 32
_VSYSCALL = "[vsyscall]"


class Target:
    """A process that can be traced, held by a pidfd (pidfd_open(2)); made by ``open_target``.

    While ``exited`` is false, its PID means this process.  It is readable for ``poll`` when the last
    thread has exited, also while the parent has not waited yet; a leader that exits before
    other threads does not make it so (seen on Linux 6.18; kernel/exit.c, thread_group_exited).
    """

    def __init__(self, leader: Task, pidfd: int) -> None:
        self.pid = leader.tgid
        self.id: ThreadId = leader.id
        self._pidfd = pidfd

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The pidfd, for poll and select; it belongs to this object."""
        return self._pidfd

    def close(self) -> None:
        """Let go of the process.  May be called again."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def wait(self, seconds: float) -> bool:
        """Wait until the process has exited, at most so long; whether it has."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    @property
    def exited(self) -> bool:
        """All its threads have exited."""
        return self.wait(0)


class Gone:
    """A process that had ended before it could be held."""

    exited = True

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def close(self) -> None:
        """There is nothing to let go of."""


def hold(pid: int, at: int) -> Optional[Target]:
    """Hold the process that had this PID at a moment (ns of CLOCK_MONOTONIC); None where it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        leader = read_task(pid, pid)
    except CannotTrace:
        leader = None
    if leader is None or leader.id.born > at:  # another one has its PID
        os.close(pidfd)
        return None
    return Target(leader, pidfd)


def open_target(pid: int) -> Target:
    """Check that ``pid`` is a process we can trace, and hold it.

    Raises ``CannotTrace`` with one line that says why not and what to do.
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
    """Why /proc has no such PID: no process, or one that a /proc mounted with hidepid hides."""
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
    """Ask for the kernel's permission (ptrace(2), access mode read) before anything is attached."""

    def use(tid: int) -> None:
        os.close(os.open(f"{task_dir(pid, tid)}/maps", os.O_RDONLY | os.O_CLOEXEC))

    through_live_task(pid, "memory map", use)


def refuse_32_bit(pid: int) -> None:
    """Raise CannotTrace where a process runs a program whose calls we would not see; ProcessGone."""
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
    """Raise CannotTrace where a file is such a program; ``name`` is what to call it."""
    try:
        header = _header(os.open(path, _TO_LOOK_AT))
    except OSError:
        return  # who may execute it need not be allowed to read it
    _refuse_elf_32(header, f"{name} is")


def _refuse_elf_32(header: bytes, subject: str) -> None:
    if len(header) < _ELF_HEADER_SIZE or header[:4] != _ELF_MAGIC or header[4] != _ELF_CLASS_32:
        return
    (machine,) = struct.unpack_from("<H", header, 18)
    kind = "an x32" if machine == _ELF_MACHINE_X86_64 else "a 32-bit"
    raise CannotTrace(f"{subject} {kind} program: only 64-bit programs can be traced")


def _elf_header(pid: int, tid: int) -> bytes:
    fd = os.open(f"{task_dir(pid, tid)}/exe", _TO_LOOK_AT)
    with reading(pid, "program file"):
        return _header(fd)


def _header(fd: int) -> bytes:
    """What a file begins with, which is closed."""
    try:
        return os.read(fd, _ELF_HEADER_SIZE)
    finally:
        os.close(fd)
