# SPDX-License-Identifier: Apache-2.0
"""The C library of this process, for calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 128 << 10
"""Bytes from which on malloc maps a block by itself: glibc's default, but fixed."""


def syscall(number: int, *arguments: Any, what: str | None = None) -> int:
    """Make a system call (syscall(2)) and return its result.

    ``arguments``: integers, each passed as a long, or what ctypes passes.  ``what`` is the file name of the
    error.  Raises OSError.
    """
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise error(what)
    return result


def error(what: str | None = None) -> OSError:
    """The error of the last call of ``LIBC`` in this thread."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code)) if what is None else OSError(code, os.strerror(code), what)


def give_back_memory() -> None:
    """Have malloc return freed memory to the kernel (malloc_trim(3)); it would keep tens of MiB.

    From then on large blocks are unmapped when they are freed.  Otherwise glibc raises its threshold to the
    size of each large block that is freed and takes the next one from the heap, where smaller blocks prevent
    its release (mallopt(3), M_MMAP_THRESHOLD): 5 MiB in a report of 65,000 mappings.
    """
    with suppress(AttributeError):  # musl's malloc has no such functions, and caches less
        LIBC.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        LIBC.malloc_trim(0)
