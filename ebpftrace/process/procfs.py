# SPDX-License-Identifier: Apache-2.0
"""Reading /proc of one process, safe against tasks that exit in between.

The one place that turns the errors of /proc into ``CannotTrace``: no function of this room lets
an ``OSError`` out, except those here that say so.

Much of /proc/PID shows the address space of the group *leader*.  A leader that called
``pthread_exit`` while other threads run is a zombie without one: its ``maps`` is empty, its ``exe``
dangles and its ``mem`` cannot be opened.  What needs the address space is therefore read through a
task that still has it, see ``through_live_task``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, TypeVar

from ebpftrace.errors import RAISE_LIMIT, CannotTrace

VANISHED = (FileNotFoundError, ProcessLookupError)
"""What /proc raises for a task that has exited: ENOENT at open, ESRCH at read."""

_SMALL_READ = 1 << 16
_SMALL_FILE_LIMIT = 1 << 20
_PIECE = 3072
"""Bytes of one buffer of ``read_chunks`` ..."""
_PIECES = 128
"""... and how many there are."""
_LIVE_TASK_ATTEMPTS = 32

_T = TypeVar("_T")


class ProcessGone(CannotTrace):
    """The process exited before or while it was looked at."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} has exited")
        self.pid = pid


def explain(error: OSError, pid: int, what: str) -> CannotTrace:
    """What to tell the user of an error of /proc/PID; ``what`` names the thing read, "memory map"."""
    if isinstance(error, VANISHED):
        return ProcessGone(pid)
    if isinstance(error, PermissionError):
        return CannotTrace(f"not permitted to read the {what} of process {pid}", how_to_be_permitted())
    why = (error.strerror or str(error)).lower()
    remedy = RAISE_LIMIT.get(error.errno or 0, "")
    return CannotTrace(f"cannot read the {what} of process {pid}: {why}", remedy)


def how_to_be_permitted() -> str:
    """What to do where the kernel refuses (ptrace(2), "Ptrace access mode checking")."""
    if os.geteuid() != 0:
        return "run as root"
    return "root is refused by a security module, in a container, or where it lacks CAP_SYS_PTRACE"


@contextmanager
def reading(pid: int, what: str) -> Iterator[None]:
    """Turn an ``OSError`` of a look at a process into ``ProcessGone`` or ``CannotTrace``."""
    try:
        yield
    except OSError as error:
        raise explain(error, pid, what) from None


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield the content of a long /proc file, in chunks cut anywhere.  Raises ``OSError``.

    Whatever size is asked for, the kernel gives no more than the records that fit into a page
    (fs/seq_file.c).  But readv(2) goes on to the next buffer as long as it fills one, and it always fills
    one that is so much smaller than a page.
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
    """Content of a /proc file that is small by nature; what exceeds 1 MiB is cut.  Raises ``OSError``."""
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
    """Whether /proc lists our own processes only (proc(5), hidepid=2): everywhere else there is an init."""
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

    ``statm`` is all zeros for a task without one (kernel fs/proc/array.c, proc_pid_statm), and
    unlike ``maps`` anyone may read it.
    """
    if read_small(f"{task_dir(pid, tid)}/statm").split(b" ", 1)[0] in (b"", b"0"):
        raise ProcessLookupError


def live_task(pid: int) -> int:
    """Tid of a thread that still has the address space of the process, the leader if it can be.

    Raises ``ProcessGone`` where there is none (also for a kernel thread) or ``CannotTrace``.
    """
    # The leader without the list: with many threads that takes milliseconds.
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
    """Result of ``use(tid)`` with a thread that has the address space.

    Where that thread vanishes meanwhile (``use`` raises ``VANISHED``) the next one is tried.
    Raises ``ProcessGone`` or ``CannotTrace``.
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
