# SPDX-License-Identifier: Apache-2.0
"""glibc's cache of stacks: what is in it, and how much it may hold (glibc ``nptl/nptl-stack.c``)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Optional

from ebpftrace.glibc import STACK_CACHE_LIMIT
from ebpftrace.model import Interval
from ebpftrace.process.books.lists import Lists, Readable
from ebpftrace.process.books.walk import Walker
from ebpftrace.process.tunables import read_environment, tunable

_TUNABLE = b"glibc.pthread.stack_cache_size"
_TUNABLE_SINCE = (2, 34)
_ATTEMPTS = 4


@dataclass(frozen=True)
class StackCache:
    """The cache at one moment; sizes in bytes, guards included."""

    size: Optional[int] = None
    stacks: tuple[Interval, ...] = ()


def read_cache(lists: Lists, memory: Readable, walker: Walker) -> StackCache:
    """The cached stacks.  Only told when glibc's own sum of their sizes says the same.

    That sum is also the check that the list was found at all: there is no ``_thread_db_`` symbol for it.
    """
    if lists.cache is None or lists.cache_size is None:
        return StackCache()
    for _ in range(_ATTEMPTS):
        try:
            (size,) = struct.unpack(lists.order + "Q", memory.read(lists.cache_size, 8))
        except OSError:
            break
        walk = walker.walk(lists.cache)
        if walk.complete and size == sum(descriptor.block_size for descriptor in walk.descriptors):
            blocks = (Interval(cached.block, cached.block + cached.block_size) for cached in walk.descriptors)
            return StackCache(size, tuple(sorted(blocks)))
    return StackCache()


def read_limit(pid: int, lists: Lists, memory: Readable) -> int:
    """Bytes that the cache may hold: glibc's variable where it has a symbol, else what the process was
    started with (GLIBC_TUNABLES), else the default.  Raises ``ProcessGone`` or ``CannotTrace``.
    """
    if lists.cache_limit is not None:
        try:
            (limit,) = struct.unpack(lists.order + "Q", memory.read(lists.cache_limit, 8))
            return int(limit)
        except OSError:
            pass
    if lists.version < _TUNABLE_SINCE:
        return STACK_CACHE_LIMIT
    limit = tunable(read_environment(pid), _TUNABLE)
    return STACK_CACHE_LIMIT if limit is None else limit
