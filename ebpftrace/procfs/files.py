# SPDX-License-Identifier: Apache-2.0
"""Opens files of a target: the very file that it has mapped, and files by their path in its root.

``/proc/PID/map_files/START-END`` (proc(5); CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE) opens the file of a
mapping even if it was deleted, replaced or renamed, or is in another mount namespace.  The entry vanishes
with the mapping, so open it early and keep the descriptor.

Files that are not mapped are opened by path, in the target's mount namespace.  A plain
``/proc/PID/root/PATH`` follows absolute symbolic links from the *caller's* root, so a hostile container could
make us open any file of the host.  openat2(2) with RESOLVE_IN_ROOT (Linux 5.6) does not.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress
from typing import Callable, NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.libc import syscall
from ebpftrace.model import Vma
from ebpftrace.procfs.access import read_small, through_live_task

_ESCAPED_NEWLINE = "\\012"
_SYS_OPENAT2 = 437
"""The same number on every architecture (include/uapi/asm-generic/unistd.h)."""
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_OPEN_HOW = struct.Struct("<QQQ")


class FileKey(NamedTuple):
    """Identity of a mapped file; it is the same in every process that maps it."""

    device: str
    inode: int
    path: str


class CannotOpen(CannotTrace):
    """The file of a mapping can't be opened, or is not a regular file."""


def file_key(vma: Vma) -> FileKey:
    """The key of the file mapped here; its ``inode`` is 0 for memory without a file."""
    return FileKey(vma.device, vma.inode, vma.path)


def key_of(status: os.stat_result, path: str) -> FileKey:
    """The key of a file, by stat(2)."""
    return FileKey(f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", status.st_ino, path)


def key_by_mount(handle: int, path: str) -> Optional[FileKey]:
    """The key of an open file by the device of its mount; None if that can't be read.

    On overlayfs before Linux 6.8 /proc/PID/maps shows the file below instead, but the kernel's struct file
    that mmap is given is the one of the overlay.
    """
    device = _device_of_mount(handle)
    if device is None:
        return None
    return FileKey(f"{device[0]:02x}:{device[1]:02x}", os.fstat(handle).st_ino, path)


def open_mapped_file(pid: int, vma: Vma) -> int:
    """A read-only descriptor (caller closes) of the regular file that ``vma`` maps.

    Nothing but a regular file is ever opened: opening a device or FIFO has effects.
    Raises ``CannotOpen``, ``ProcessGone`` or ``CannotTrace``.
    """
    if not vma.inode:
        raise CannotOpen(f"no file is mapped at {vma.start:#x}")
    return through_live_task(pid, "mapped files", lambda tid: _open(tid, vma))


def is_file(handle: int, key: FileKey) -> bool:
    """Whether an open file is the one that is mapped.

    On btrfs and overlayfs stat(2) returns another device than /proc/PID/maps shows; the device of the mount
    is the one in maps.
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
    """The device, as in /proc/PID/maps, of the mount that a file was opened through (proc(5), mountinfo)."""
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
    """The file names that a path of /proc/PID/maps may denote: ``\\012`` is a newline or just this text."""
    if not path.startswith("/"):
        return []
    return list(dict.fromkeys((path, path.replace(_ESCAPED_NEWLINE, "\n"))))


def _open_checked(path: str, vma: Vma, same: Callable[[str, os.stat_result, Vma], bool]) -> int:
    """Check a file and open that very file, even if its path changes meanwhile.  Raises ``OSError``."""
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
    """Whether the entry is for the wanted file, not for one mapped at the same address since.

    The device can't be compared: on btrfs and overlayfs it differs between stat and maps, and on some kernels
    the inode does too.
    """
    return status.st_ino == vma.inode or os.readlink(link) == vma.path  # noqa: PTH115


def open_in_root(root: int, path: str) -> int:
    """Open a regular file for reading, with ``path`` resolved inside the directory ``root`` (a descriptor).

    It never blocks on a FIFO.  Raises ``OSError``, also if the file is not a regular one.
    """
    # Opening a device can have side effects, so it is opened with O_PATH and checked first.
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    found = _openat2(root, path, how)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


def _openat2(root: int, path: str, how: bytes) -> int:
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, "no name that a file can have", path) from None
    if b"\0" in raw:
        raise OSError(errno.EINVAL, "zero byte in path", path)
    return syscall(_SYS_OPENAT2, root, raw, how, len(how), what=path)
