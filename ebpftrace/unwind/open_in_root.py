# SPDX-License-Identifier: Apache-2.0
"""Opens files by a path in the target's mount namespace, without leaving it.

A plain ``/proc/PID/root/PATH`` follows absolute symbolic links from the *caller's* root, so a hostile
container could make us open any file of the host.  openat2(2) with RESOLVE_IN_ROOT (Linux 5.6) does not.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from ebpftrace.libc import syscall

_SYS_OPENAT2 = 437
"""The same number on every architecture (include/uapi/asm-generic/unistd.h)."""
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_OPEN_HOW = struct.Struct("<QQQ")


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
