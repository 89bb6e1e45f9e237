# SPDX-License-Identifier: Apache-2.0
"""The rows of the ledger, by far the largest table: kept as the kernel gives them, decoded one by one.

A thread's newest mapping is not in the table but with the thread (``struct newest_t``).
"""

from __future__ import annotations

import ctypes
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from operator import mul
from typing import Optional

from ebpftrace.kernel import tables
from ebpftrace.kernel.layout import (
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
"""Its key in the table, and what stood there as the leaf."""


class Rows:
    """Rows of one address space, ascending by their starts."""

    def __init__(self, keys: array[int], leaves: bytearray, positions: array[int]) -> None:
        """``positions`` says which of ``keys`` and ``leaves`` these are, in order."""
        self._keys = keys
        self._leaves = leaves
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Row]:
        mappers: dict[tuple[int, int], ThreadId] = {}
        # Flags and sites repeat: one object of each value instead of one for each row.
        known: dict[int, int] = {}
        one_of = known.setdefault
        for position in self._positions:
            fields = MAPPING.unpack_from(self._leaves, position * MAPPING.size)
            length, since, made_at, born, site, tid, prot, flags, _ = fields
            mapper = mappers.get((tid, born))
            if mapper is None:
                mapper = mappers[tid, born] = ThreadId(tid, born)
            if since == made_at:
                since = made_at
            flags, site = one_of(flags, flags), one_of(site, site)
            start = address_of(self._keys[position])
            yield Row(start, length, since, made_at, mapper, prot, flags, site)


def no_rows() -> Rows:
    """The rows of an address space that has none."""
    return Rows(array("Q"), bytearray(), array("I"))


def newest_row(newest: NewestT) -> Optional[NewestRow]:
    """Return the row that a thread keeps as (key, leaf); None where it was read half written."""
    *words, check = NEWEST_WORDS.unpack_from(newest)
    if sum(map(mul, words, CHECK_WEIGHTS)) & _WORD_MASK != check:
        return None
    return words[0], bytes(newest.row)


def read_rows(fd: int, newest: Iterable[NewestRow]) -> defaultdict[int, Rows]:
    """Read the rows of all address spaces, by space.  Raises TableRefused.

    ``newest``: what threads kept when they were read, before: it may be in the table by now.  Of two rows
    with one start the older one has lost a part at least, by a call that another thread made.
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
        # A table read while it changes can show a slot twice.
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
