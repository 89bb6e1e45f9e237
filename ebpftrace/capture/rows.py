# SPDX-License-Identifier: Apache-2.0
"""The rows of the ledger, by far the largest table: stored as the kernel gives them, decoded one by one.

A thread's newest mapping is not in the table but in the thread's entry (``struct newest_t``).
"""

from __future__ import annotations

import ctypes
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import mul
from typing import Optional

from ebpftrace.capture import tables
from ebpftrace.capture.layout import (
    CHECK_WEIGHTS,
    MAPPING,
    NEWEST_WORDS,
    SPACE_SHIFT,
    MappingT,
    NewestT,
    address_of,
)
from ebpftrace.model import Row, ThreadId

_WORD_MASK = (1 << 64) - 1

NewestRow = tuple[int, bytes]
"""The row's key and its value, as the table would have them."""


class Rows:
    """Rows of one address space, ascending by their starts."""

    def __init__(self, keys: array[int], leaves: bytearray, positions: array[int]) -> None:
        """``positions``: the indices of these rows in ``keys`` and ``leaves``, in order."""
        self._keys = keys
        self._leaves = leaves
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Row]:
        mappers: dict[tuple[int, int], ThreadId] = {}
        # Flags and sites repeat: share one int object for each value, to save memory.
        shared = dict[int, int]().setdefault
        for position in self._positions:
            fields = MAPPING.unpack_from(self._leaves, position * MAPPING.size)
            length, since, made_at, started_at, site, tid, prot, flags, _ = fields
            mapper = mappers.get((tid, started_at))
            if mapper is None:
                mapper = mappers[tid, started_at] = ThreadId(tid, started_at)
            if since == made_at:
                since = made_at
            flags, site = shared(flags, flags), shared(site, site)
            start = address_of(self._keys[position])
            yield Row(start, length, since, made_at, mapper, prot, flags, site)


def no_rows() -> Rows:
    """Rows of an address space without mappings."""
    return Rows(array("Q"), bytearray(), array("I"))


def newest_row(newest: NewestT) -> Optional[NewestRow]:
    """Return the row that a thread has cached; None where it was read half-written."""
    *words, check = NEWEST_WORDS.unpack_from(newest)
    if sum(map(mul, words, CHECK_WEIGHTS)) & _WORD_MASK != check:
        return None
    return words[0], bytes(newest.row)


def read_rows(fd: int, newest: Iterable[NewestRow]) -> defaultdict[int, Rows]:
    """Read the rows of all address spaces, by space.  Raises TableRefused.

    ``newest``: the rows that threads had cached when they were read, before the table, where such a row may
    be by now.  Of two rows with the same start, another thread's call has unmapped at least a part of the
    older one.
    """
    keys, leaves = array("Q"), bytearray()
    for some_keys, some_leaves in tables.batches(fd, ctypes.c_uint64, MappingT):
        keys.frombytes(some_keys)
        leaves += some_leaves

    def since(position: int) -> int:
        _, at, *_ = MAPPING.unpack_from(leaves, position * MAPPING.size)
        return int(at)

    slots: dict[int, int] = {}
    for position, key in enumerate(keys):
        # A table that changes while it is read can show an entry twice.
        if key not in slots or since(slots[key]) < since(position):
            slots[key] = position
    found = list(slots.items())
    for key, leaf in newest:
        position = len(keys)
        keys.append(key)
        leaves += leaf
        if key not in slots or since(slots[key]) != since(position):
            found.append((key, position))
    positions: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
    for key, position in sorted(found):
        positions[key >> SPACE_SHIFT].append(position)
    return defaultdict(no_rows, {space: Rows(keys, leaves, of) for space, of in positions.items()})
