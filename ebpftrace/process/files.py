# SPDX-License-Identifier: Apache-2.0
"""Opening the very file that a target has mapped, wherever it is by now.

``/proc/PID/map_files/START-END`` (proc(5); CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE) opens the file
of a mapping even when it was deleted, replaced, renamed, or lies in another mount namespace.  Open
early and keep the descriptor: the entry is gone with the mapping.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Callable, NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.model import Vma
from ebpftrace.process.procfs import read_small, through_live_task

_ESCAPED_NEWLINE = "\\012"


class FileKey(NamedTuple):
    """Identity of a mapped file, the same in every process that maps it."""

    device: str
    inode: int
    path: str


class CannotOpen(CannotTrace):
    """The file of a mapping cannot be opened, or is not a regular file."""


def file_key(vma: Vma) -> FileKey:
    """Which file is mapped here; ``inode`` is 0 for memory without a file."""
    return FileKey(vma.device, vma.inode, vma.path)


def key_of(status: os.stat_result, path: str) -> FileKey:
    """Which file this is, by what stat says of it."""
    return FileKey(f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino, path)


def open_mapped_file(pid: int, vma: Vma) -> int:
    """A read-only descriptor (caller closes) of the regular file that ``vma`` maps.

    Nothing but a regular file is ever opened: opening a device or FIFO has effects.
    Raises ``CannotOpen``, ``ProcessGone`` or ``CannotTrace``.
    """
    if not vma.inode:
        raise CannotOpen(f"no file is mapped at {vma.start:#x}")
    return through_live_task(pid, "mapped files", lambda tid: _open(tid, vma))


def is_file(handle: int, key: FileKey) -> bool:
    """Whether an open file is the one that a mapping is of.

    On btrfs and overlayfs stat tells another device than /proc/PID/maps: there the mount tells.
    """
    try:
        status = os.fstat(handle)
        if status.st_ino != key.inode or not stat.S_ISREG(status.st_mode):
            return False
        major, _, minor = key.device.partition(":")
        number = (int(major, 16), int(minor, 16))
        return status.st_dev == os.makedev(*number) or _device_of_mount(handle) == number
    except (OSError, ValueError):
        return False


def _device_of_mount(handle: int) -> Optional[tuple[int, int]]:
    """The device of the mount that a file was opened through, as mappings have it (proc(5), mountinfo)."""
    mounts = [
        line.split()[1]
        for line in read_small(f"/proc/self/fdinfo/{handle}").splitlines()
        if line.startswith(b"mnt_id:")
    ]
    for line in read_small("/proc/self/mountinfo").splitlines():
        fields = line.split(b" ", 3)
        if len(fields) > 3 and fields[:1] == mounts:
            major, _, minor = fields[2].partition(b":")
            return int(major), int(minor)
    return None


def _open(tid: int, vma: Vma) -> int:
    try:
        return _open_checked(f"/proc/{tid}/map_files/{vma.start:x}-{vma.end:x}", vma, _same_link)
    except OSError as error:
        problem = error.strerror
    for name in names(vma.path):
        with suppress(OSError):
            return _open_checked(f"/proc/{tid}/root{name}", vma, _same_file)
    raise CannotOpen(f"cannot open {vma.path!a}, mapped at {vma.start:#x}: {problem}")


def names(path: str) -> list[str]:
    """The names a path of /proc/PID/maps may stand for: it may hold a newline or the text for one."""
    if not path.startswith("/"):
        return []
    return list(dict.fromkeys((path, path.replace(_ESCAPED_NEWLINE, "\n"))))


def _open_checked(path: str, vma: Vma, same: Callable[[str, os.stat_result, Vma], bool]) -> int:
    """Open what was looked at, not what the path names a moment later.  Raises ``OSError``."""
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if not same(path, status, vma):
            raise OSError(errno.ESTALE, "another file is there now")
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _same_file(_: str, status: os.stat_result, vma: Vma) -> bool:
    major, _, minor = vma.device.partition(":")
    return status.st_ino == vma.inode and status.st_dev == os.makedev(int(major, 16), int(minor, 16))


def _same_link(link: str, status: os.stat_result, vma: Vma) -> bool:
    """Whether the entry is for the file we want, not for one mapped at the same place since.

    The device is no test: on btrfs and overlayfs, stat and maps differ in it, and on some kernels
    in the inode too.
    """
    return status.st_ino == vma.inode or os.readlink(link) == vma.path  # noqa: PTH115
