# SPDX-License-Identifier: Apache-2.0
"""Memory that is free inside this process goes back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 128 << 10
"""Bytes of a block that malloc has the kernel map by itself: glibc's own default, but kept."""


def give_back_memory() -> None:
    """Have malloc return what is freed (malloc_trim(3)): it would keep tens of MiB, for a next time.

    From then on large blocks go back when they are freed.  Otherwise glibc takes each that was freed for a
    sign that blocks of its size do not stay long, and puts the next among the small ones, which hold it fast
    (mallopt(3), M_MMAP_THRESHOLD): 5 MiB in a report of 65,000 mappings.
    """
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # musl's malloc has no such functions, and keeps less
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        libc.malloc_trim(0)
