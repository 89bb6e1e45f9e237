# SPDX-License-Identifier: Apache-2.0
"""Read and write BPF maps by the bpf(2) system call, many entries at a time.

bcc walks a hash with one ``get_next_key`` per entry, which starts again from the front whenever the current
entry is deleted: in a map that the target's calls change all the time it may see entries twice or never end.
The batch look-up goes bucket by bucket (kernel/bpf/hashtab.c: ``__htab_map_lookup_and_delete_batch``) and
needs two calls in place of 130,000.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from itertools import compress
from operator import not_
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional, TypeVar, Union, cast

from ebpftrace.errors import CannotTrace
from ebpftrace.libc import syscall
from ebpftrace.syscall_numbers import numbers

_UPDATE_ELEM = 2
_LOOKUP_ELEM = 1
_DELETE_ELEM = 3
_LOOKUP_AND_DELETE_ELEM = 21
_LOOKUP_BATCH = 24
_OBJ_GET_INFO_BY_FD = 15
_BPF_NOEXIST = 1
_FIRST_BATCH = 4096
_ENOTSUPP = 524
"""The kernel's error, not in errno.h, for a command that a map type does not support."""

if TYPE_CHECKING:
    Data = Union[ctypes._SimpleCData[int], ctypes.Structure]
Key = TypeVar("Key", bound="Data")
Leaf = TypeVar("Leaf", bound=ctypes.Structure)
Element = TypeVar("Element", bound="Data")


class Taken(Enum):
    """What ``take`` has taken out of a table."""

    NOTHING = 0
    """The entry was missing, or not wanted any more."""
    WANTED = 1
    ANOTHER = 2
    """An entry that replaced it between two calls, and must be put back."""
    UNSEEN = 3
    """WANTED or ANOTHER: the kernel cannot read and delete at once (hashes before 5.14)."""


class _ElementAttributes(ctypes.Structure):
    """The BPF_MAP_*_ELEM part of ``union bpf_attr`` (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _BatchAttributes(ctypes.Structure):
    """The BPF_MAP_*_BATCH part of ``union bpf_attr``."""

    _fields_ = (
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("map_fd", ctypes.c_uint32),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class MapInfo(ctypes.Structure):
    """``struct bpf_map_info`` up to its name (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _InfoAttributes(ctypes.Structure):
    """The BPF_OBJ_GET_INFO_BY_FD part of ``union bpf_attr``."""

    _fields_ = (("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("info", ctypes.c_uint64))


class TableRefused(CannotTrace):
    """The kernel refused to read or write a table of ours."""

    def __init__(self, did: str, error: OSError) -> None:
        remedy = "the target has too many threads for it" if error.errno == errno.E2BIG else ""
        super().__init__(f"the kernel refused to {did} a table ({os.strerror(error.errno or 0)})", remedy)


def bpf(command: int, attributes: ctypes.Structure) -> int:
    """Call bpf(2) and return its result.  Raises OSError."""
    return syscall(numbers()["bpf"], command, ctypes.byref(attributes), ctypes.sizeof(attributes))


def map_info(fd: int) -> MapInfo:
    """Return the type and sizes of a map.  Raises OSError."""
    info = MapInfo()
    bpf(_OBJ_GET_INFO_BY_FD, _InfoAttributes(fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return info


def update(fd: int, key: Data, leaf: Data) -> None:
    """Add or replace one entry.  Raises TableRefused when full."""
    try:
        bpf(
            _UPDATE_ELEM,
            _ElementAttributes(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(leaf)),
        )
    except OSError as error:
        raise TableRefused("write", error) from error


def push(fd: int, leaf: ctypes._SimpleCData[int]) -> None:
    """Add one element to a queue.  Raises TableRefused when full."""
    try:
        bpf(_UPDATE_ELEM, _ElementAttributes(map_fd=fd, value=ctypes.addressof(leaf)))
    except OSError as error:
        raise TableRefused("write", error) from error


def pop(fd: int, leaf: ctypes._SimpleCData[int]) -> bool:
    """Move the first element of a queue to ``leaf``; False where it is empty."""
    try:
        bpf(_LOOKUP_AND_DELETE_ELEM, _ElementAttributes(map_fd=fd, value=ctypes.addressof(leaf)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise TableRefused("read", error) from error
    return True


def of_each_cpu(fd: int, index: int, leaf_type: type[Element]) -> ctypes.Array[Element]:
    """Return each CPU's value of an element of a per-CPU array; its size must be a multiple of 8."""
    leaves = cast("ctypes.Array[Element]", (leaf_type * _possible_cpus())())
    key = ctypes.c_uint32(index)
    attributes = _ElementAttributes(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(leaves))
    try:
        bpf(_LOOKUP_ELEM, attributes)
    except OSError as error:
        raise TableRefused("read", error) from error
    return leaves


def per_cpu_sum(fd: int, index: int) -> int:
    """Return the sum over all CPUs of one element of a per-CPU array of u64."""
    return sum(of_each_cpu(fd, index, ctypes.c_uint64))


@lru_cache(maxsize=1)
def _possible_cpus() -> int:
    """Return the number of values in an element of a per-CPU map (libbpf_num_possible_cpus())."""
    last = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def inserter(fd: int, key: Data, leaf: ctypes.Structure) -> Callable[[], bool]:
    """Return a function that adds ``leaf`` at ``key``, with their values at its call; False if there is an
    entry.

    For many entries, because to make the arguments takes longer than the call.  It raises TableRefused when
    full.
    """
    attributes = _ElementAttributes(map_fd=fd, flags=_BPF_NOEXIST)

    def insert() -> bool:
        attributes.key, attributes.value = ctypes.addressof(key), ctypes.addressof(leaf)
        try:
            bpf(_UPDATE_ELEM, attributes)
        except FileExistsError:
            return False
        except OSError as error:
            raise TableRefused("write", error) from error
        return True

    return insert


def lookup(fd: int, key: Data, leaf: ctypes.Structure) -> bool:
    """Read one entry into ``leaf``; False where there is none."""
    try:
        bpf(
            _LOOKUP_ELEM,
            _ElementAttributes(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(leaf)),
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise TableRefused("read", error) from error
    return True


def take(fd: int, key: Data, leaf: ctypes.Structure, is_wanted: Callable[[], bool]) -> Taken:
    """Read one entry into ``leaf`` and, if ``is_wanted`` says so, delete it; see ``Taken``."""
    if not lookup(fd, key, leaf) or not is_wanted():
        return Taken.NOTHING
    attributes = _ElementAttributes(map_fd=fd, key=ctypes.addressof(key), value=ctypes.addressof(leaf))
    try:
        bpf(_LOOKUP_AND_DELETE_ELEM, attributes)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Taken.NOTHING
        if error.errno not in (errno.EINVAL, _ENOTSUPP):
            raise TableRefused("write", error) from error
    else:
        return Taken.WANTED if is_wanted() else Taken.ANOTHER
    delete(fd, key)
    return Taken.UNSEEN


def delete(fd: int, key: Data) -> None:
    """Delete one entry; a missing one is no error."""
    try:
        bpf(_DELETE_ELEM, _ElementAttributes(map_fd=fd, key=ctypes.addressof(key)))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise TableRefused("write", error) from error


def u32_keys(fd: int, leaf_type: type[Leaf], zero_at: Optional[int] = None) -> set[int]:
    """Return the keys of a hash whose keys are u32; as complete as ``entries``.

    ``zero_at``: only keys of values whose u64 at this offset is 0.
    """
    found: set[int] = set()
    for keys, leaves in batches(fd, ctypes.c_uint32, leaf_type):
        tids = keys.cast("B").cast("I")
        if zero_at is None:
            found.update(tids)
        else:
            words = leaves.cast("B").cast("Q")[zero_at // 8 :: ctypes.sizeof(leaf_type) // 8]
            found.update(compress(tids, map(not_, words)))
    return found


def count(fd: int, key_type: type[Key], leaf_type: type[Leaf]) -> int:
    """Return the number of entries of a hash; takes 15 ms for 130,000."""
    return sum(len(keys) for keys, _ in batches(fd, key_type, leaf_type)) // ctypes.sizeof(key_type)


def entries(fd: int, key_type: type[Key], leaf_type: type[Leaf]) -> Iterator[tuple[Key, Leaf]]:
    """Yield every entry of a hash, as objects that are valid until the next entry.

    An entry that is added or deleted meanwhile may or may not be seen; any other is seen exactly once.
    Raises TableRefused.
    """
    for keys, leaves in batches(fd, key_type, leaf_type):
        key_bytes, leaf_bytes = ctypes.sizeof(key_type), ctypes.sizeof(leaf_type)
        for index in range(len(keys) // key_bytes):
            key = key_type.from_buffer(keys, index * key_bytes)
            yield cast(Key, key), leaf_type.from_buffer(leaves, index * leaf_bytes)


def batches(fd: int, key_type: type[Key], leaf_type: type[Leaf]) -> Iterator[tuple[memoryview, memoryview]]:
    """Like ``entries``, many at a time: the bytes of their keys and, in the same order, of their values.

    Linux supports this for hashes since 5.6, earlier than the ring buffer (5.8).
    """
    key_bytes, leaf_bytes = ctypes.sizeof(key_type), ctypes.sizeof(leaf_type)
    size = _FIRST_BATCH
    position = ctypes.create_string_buffer(max(8, key_bytes))
    is_first = True
    while True:
        keys = (ctypes.c_ubyte * (size * key_bytes))()
        leaves = (ctypes.c_ubyte * (size * leaf_bytes))()
        attributes = _BatchAttributes(
            in_batch=0 if is_first else ctypes.addressof(position),
            out_batch=ctypes.addressof(position),
            keys=ctypes.addressof(keys),
            values=ctypes.addressof(leaves),
            count=size,
            map_fd=fd,
        )
        is_last = False
        try:
            bpf(_LOOKUP_BATCH, attributes)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # one bucket holds more than we asked for
                size *= 2
                continue
            if error.errno != errno.ENOENT:
                raise TableRefused("read", error) from error
            is_last = True
        count = attributes.count
        yield memoryview(keys)[: count * key_bytes], memoryview(leaves)[: count * leaf_bytes]
        if is_last:
            return
        is_first = False
