"""glibc's cache of stacks: what is in it, and how much it may hold (glibc ``nptl/nptl-stack.c``)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Optional

from ebpftrace.model import Interval
from ebpftrace.process.books.lists import Lists, Readable
from ebpftrace.process.books.walk import Walker
from ebpftrace.process.procfs import read_small, task_dir, through_live_task

DEFAULT_LIMIT = 40 << 20
_VARIABLE = b"GLIBC_TUNABLES="
_NAMESPACE = b"glibc."
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
        return DEFAULT_LIMIT
    environment = through_live_task(
        pid, "environment", lambda tid: read_small(f"{task_dir(pid, tid)}/environ")
    )
    return limit_from_environment(environment)


def limit_from_environment(environment: bytes) -> int:
    """The limit that GLIBC_TUNABLES in an environment block sets; numbers are as in C (glibc dl-tunables.c).

    The last setting counts, as in glibc; one that is no number counts for nothing.  glibc up to 2.37 cuts the
    variable into one string per setting where it lies, so settings may follow as strings of their own.
    """
    limit = DEFAULT_LIMIT
    inside = False
    for text in environment.split(b"\0"):
        if text.startswith(_VARIABLE):
            inside, text = True, text[len(_VARIABLE) :]
        elif not text.startswith(_NAMESPACE):
            inside = False
        if inside:
            for setting in text.split(b":"):
                key, _, value = setting.partition(b"=")
                if key == _TUNABLE:
                    limit = _c_number(value, limit)
    return limit


def _c_number(text: bytes, otherwise: int) -> int:
    digits = text.decode("ascii", "replace").lower()
    try:
        if digits.startswith("0x"):
            value = int(digits, 16)
        else:
            value = int(digits, 8 if digits.startswith("0") else 10)
    except ValueError:
        return otherwise
    return value if 0 <= value < 1 << 64 else otherwise
