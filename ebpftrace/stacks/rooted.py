# SPDX-License-Identifier: Apache-2.0
"""Opening files by a path of the target's mount namespace, without being led out of it.

Plain ``/proc/PID/root/PATH`` follows an absolute symbolic link from the *caller's* root: a hostile
container could point us at any file of the host.  openat2(2) with RESOLVE_IN_ROOT (Linux 5.6) does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from functools import lru_cache
from typing import Any

_SYS_OPENAT2 = 437
"""The same number on every architecture (include/uapi/asm-generic/unistd.h)."""
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_OPEN_HOW = struct.Struct("<QQQ")


def open_in_root(root: int, path: str) -> int:
    """Open a regular file for reading, ``path`` resolved inside the directory ``root`` (a descriptor).

    Never blocks on a FIFO.  Raises OSError, also where the file is not a regular one.
    """
    # O_PATH first: opening a device can have effects, looking at it has none.
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    found = _openat2(root, path, how)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


@lru_cache(maxsize=1)
def _syscall() -> Any:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    return call


def _openat2(root: int, path: str, how: bytes) -> int:
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, "no name that a file can have", path) from None
    if b"\0" in raw:
        raise OSError(errno.EINVAL, "zero byte in path", path)
    fd = int(
        _syscall()(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root), ctypes.c_char_p(raw), ctypes.c_char_p(how),
            ctypes.c_size_t(len(how)),
        )
    )  # fmt: skip
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd
