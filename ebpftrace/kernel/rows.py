"""The rows of the ledger, by far the largest table: kept as the kernel gives them, decoded one by one."""

from __future__ import annotations

import ctypes
from array import array
from collections import defaultdict
from collections.abc import Iterator

from ebpftrace.kernel import tables
from ebpftrace.kernel.layout import MAPPING, SPACE_SHIFT, MappingT
from ebpftrace.model import Row, ThreadId

_ADDRESS_MASK = (1 << SPACE_SHIFT) - 1


class Rows:
    """Rows of one address space, ascending by their starts, no two of which are equal."""

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
            start = self._keys[position] & _ADDRESS_MASK
            yield Row(start, length, since, made_at, mapper, prot, flags, site)


def no_rows() -> Rows:
    """The rows of an address space that has none."""
    return Rows(array("Q"), bytearray(), array("I"))


def read_rows(fd: int) -> defaultdict[int, Rows]:
    """Read the rows of all address spaces, by space.  Raises TableRefused."""
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
    positions: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))
    for key in sorted(slots):
        positions[key >> SPACE_SHIFT].append(slots[key])
    return defaultdict(no_rows, {space: Rows(keys, leaves, of) for space, of in positions.items()})
