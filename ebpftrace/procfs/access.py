# SPDX-License-Identifier: Apache-2.0
"""Reading /proc of one process, safe against tasks that exit in between.

This module turns the errors of /proc into ``CannotTrace``: no function of this package raises an
``OSError``, except those whose docstring says so.

Much of /proc/PID shows the address space of the group *leader*.  A leader that called ``pthread_exit``
while other threads run is a zombie without one: its ``maps`` is empty, its ``exe`` dangles and its ``mem``
can't be opened.  So files that need the address space are read through a task that still has it, see
``through_live_task``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, TypeVar

from ebpftrace.errors import RAISE_LIMIT, CannotTrace, how_to_be_permitted

VANISHED = (FileNotFoundError, ProcessLookupError)
"""The errors of /proc for a task that has exited: ENOENT at open, ESRCH at read."""

_SMALL_READ = 1 << 16
_SMALL_FILE_LIMIT = 1 << 20
_PIECE = 3072
"""Bytes of one buffer of ``read_chunks``."""
_PIECES = 128
"""Buffers that ``read_chunks`` passes to readv."""
_LIVE_TASK_ATTEMPTS = 32

_T = TypeVar("_T")


class ProcessGone(CannotTrace):
    """The process exited before or while it was read."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} has exited")
        self.pid = pid


def explain(error: OSError, pid: int, what: str) -> CannotTrace:
    """The exception for an error of /proc/PID; ``what`` names the thing that was read, "memory map"."""
    if isinstance(error, VANISHED):
        return ProcessGone(pid)
    if isinstance(error, PermissionError):
        return CannotTrace(f"not permitted to read the {what} of process {pid}", how_to_be_permitted())
    why = (error.strerror or str(error)).lower()
    remedy = RAISE_LIMIT.get(error.errno or 0, "")
    return CannotTrace(f"cannot read the {what} of process {pid}: {why}", remedy)


@contextmanager
def reading(pid: int, what: str) -> Iterator[None]:
    """Turn an ``OSError`` of reading a process into ``ProcessGone`` or ``CannotTrace``."""
    try:
        yield
    except OSError as error:
        raise explain(error, pid, what) from None


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield the content of a long /proc file, in chunks cut anywhere.  Raises ``OSError``.

    Whatever size read(2) asks for, the kernel returns no more than the records that fit into a page
    (fs/seq_file.c).  But readv(2) continues with the next buffer if it filled one, and it always fills a
    buffer that is smaller than a page by more than one record.
    """
    buffer = memoryview(bytearray(_PIECES * _PIECE))
    pieces = [buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE)]
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while count := os.readv(fd, pieces):
            yield bytes(buffer[:count])
    finally:
        os.close(fd)


def read_small(path: str) -> bytes:
    """Content of a /proc file that is always small, cut at 1 MiB.  Raises ``OSError``."""
    content = bytearray()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while len(content) < _SMALL_FILE_LIMIT and (chunk := os.read(fd, _SMALL_READ)):
            content += chunk
    finally:
        os.close(fd)
    return bytes(content)


def numbers_in(directory: str) -> list[int]:
    """The numeric names in a directory of /proc, such as PIDs or tids, ascending.  Raises ``OSError``."""
    with os.scandir(directory) as entries:
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())


def process_ids() -> list[int]:
    """PIDs of all processes, ascending.  Raises ``CannotTrace``."""
    try:
        return numbers_in("/proc")
    except OSError as error:
        raise CannotTrace(f"cannot read /proc: {error.strerror}", "mount /proc") from None


def others_are_hidden() -> bool:
    """Whether /proc lists only our own processes (proc(5), hidepid=2): if it lists all, PID 1 is there."""
    return not os.path.lexists("/proc/1")


def task_ids(pid: int) -> list[int]:
    """Tids of the threads of a process, the leader first.  Raises ``ProcessGone`` or ``CannotTrace``."""
    with reading(pid, "threads"):
        return sorted(numbers_in(f"/proc/{pid}/task"), key=lambda tid: (tid != pid, tid))


def task_dir(pid: int, tid: int) -> str:
    """The /proc directory of one thread."""
    return f"/proc/{pid}/task/{tid}"


def require_address_space(pid: int, tid: int) -> None:
    """Raise ``OSError``, one of ``VANISHED``, unless the thread still has an address space.

    ``statm`` is all zeros for a task without one (kernel fs/proc/array.c, proc_pid_statm), and reading it
    takes no privilege, unlike ``maps``.
    """
    if read_small(f"{task_dir(pid, tid)}/statm").split(b" ", 1)[0] in (b"", b"0"):
        raise ProcessLookupError


def live_task(pid: int) -> int:
    """Tid of a thread that still has the address space of the process, preferably the leader.

    Raises ``ProcessGone`` if there is none (also for a kernel thread), or ``CannotTrace``.
    """
    # The leader is tried before the threads are listed, which takes milliseconds if there are many.
    if _has_address_space(pid, pid):
        return pid
    for tid in task_ids(pid):
        if _has_address_space(pid, tid):
            return tid
    raise ProcessGone(pid)


def _has_address_space(pid: int, tid: int) -> bool:
    try:
        require_address_space(pid, tid)
    except VANISHED:
        return False
    except OSError as error:
        raise explain(error, pid, "threads") from None
    return True


def through_live_task(pid: int, what: str, use: Callable[[int], _T]) -> _T:
    """Call ``use(tid)`` with a thread that has the address space, and return its result.

    If that thread exits meanwhile (``use`` raises ``VANISHED``), the next one is tried.  Raises
    ``ProcessGone`` or ``CannotTrace``.
    """
    for _ in range(_LIVE_TASK_ATTEMPTS):
        tid = live_task(pid)
        try:
            return use(tid)
        except VANISHED:
            continue
        except OSError as error:
            raise explain(error, pid, what) from None
    raise ProcessGone(pid)
