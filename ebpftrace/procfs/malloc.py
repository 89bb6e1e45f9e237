# SPDX-License-Identifier: Apache-2.0
"""What glibc's malloc has mapped: its heaps and large blocks, recognized by the headers it writes into them.

A heap of an arena other than the main one begins with a ``heap_info``: ar_ptr, prev, size, mprotect_size
(glibc malloc/arena.c).  A block above the mmap threshold has a mapping that begins with a chunk header:
prev_size 0, and its size with IS_MMAPPED set (malloc/malloc.c, sysmalloc_mmap).  Both may be anywhere in a
VMA, since the kernel merges neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Optional

from ebpftrace.glibc import HEAP_MAX_SIZE
from ebpftrace.model import Heap, Interval, Vma
from ebpftrace.procfs.memory import Readable
from ebpftrace.units import SMALLEST_PAGE
from ebpftrace.vmas import Vmas

_HEAP_INFO = struct.Struct("=4Q")
_CHUNK = struct.Struct("=2Q")
_MAX_HEAP_INFO = 256
"""Bytes; the arena of a first heap follows its heap_info, which has 32 bytes, 48 since 2.35."""
_IS_MMAPPED = 2
_FLAGS = 7
MAX_CANDIDATES = 1 << 16
"""Addresses tried as heaps, 4 TiB of memory: far more than malloc's limit of arenas allows."""
_MAX_BLOCKS = 1 << 16


def find_heaps(vmas: Vmas, memory: Readable) -> list[Heap]:
    """The heaps of malloc's arenas, proved by their headers, including the part not yet in use."""
    firsts: list[Heap] = []
    others: list[tuple[Heap, int]] = []
    for start, position in _candidates(vmas):
        try:
            arena, previous, size, accessible = _HEAP_INFO.unpack(memory.read(start, _HEAP_INFO.size))
        except OSError:
            continue
        if not 0 < size <= accessible <= HEAP_MAX_SIZE or accessible % SMALLEST_PAGE:
            continue
        end = _extent(vmas, position, start)
        if start + accessible > end:
            continue
        if not previous and start < arena < start + _MAX_HEAP_INFO:
            firsts.append(Heap(start, end, True))
        elif previous and not previous % HEAP_MAX_SIZE and arena % HEAP_MAX_SIZE < _MAX_HEAP_INFO:
            others.append((Heap(start, end, False), arena - arena % HEAP_MAX_SIZE))
    known = {heap.start for heap in firsts}
    return sorted([*firsts, *(heap for heap, home in others if home in known)])


def guess_heaps(vmas: Vmas) -> list[Heap]:
    """Heaps by their shape alone: aligned, with an inaccessible rest that fills them up to the full size.

    This is for when the mappings can be read but the memory can't; a heap in full use is missed.
    """
    heaps = []
    for start, position in _candidates(vmas):
        end = _extent(vmas, position, start)
        filled = next((vma for vma in vmas[position : position + 2] if vma.guard and vma.end >= end), None)
        if end - start == HEAP_MAX_SIZE and vmas[position].start == start and filled is not None:
            heaps.append(Heap(start, end, True))
    return heaps


def find_blocks(vmas: Vmas, memory: Readable, taken: Sequence[Interval]) -> list[Interval]:
    """Large blocks of malloc at the start of each mapping, one directly after the other.

    Mappings whose first byte is in ``taken`` (ascending) are left out, and those without a page in memory.
    """
    blocks: list[Interval] = []
    index = 0
    for first, last, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        if not (kind.rss or kind.swap) or not _is_plain(kind):
            continue
        while index < len(taken) and taken[index].end <= first:
            index += 1
        if index < len(taken) and taken[index].start <= first:
            continue
        start: Optional[int] = first
        while start is not None and start < last and len(blocks) < _MAX_BLOCKS:
            end = _block_end(memory, start, last)
            if end is not None:
                blocks.append(Interval(start, end))
            start = end
    return blocks


def _block_end(memory: Readable, start: int, limit: int) -> Optional[int]:
    try:
        before, word = _CHUNK.unpack(memory.read(start, _CHUNK.size))
    except OSError:
        return None
    size: int = word & ~_FLAGS
    if before or word & _FLAGS != _IS_MMAPPED or not size or size % SMALLEST_PAGE or start + size > limit:
        return None
    return start + size


def _is_plain(vma: Vma) -> bool:
    return vma.is_anonymous and vma.perms.startswith("rw-")


def _candidates(vmas: Vmas) -> list[tuple[int, int]]:
    """Addresses where a heap may begin, with the position of their VMA."""
    found: list[tuple[int, int]] = []
    for position, (low, high, kind) in enumerate(zip(vmas.starts, vmas.ends, vmas.kinds)):
        # Few mappings contain such an address, so this is asked first.
        start = -(-low // HEAP_MAX_SIZE) * HEAP_MAX_SIZE
        if start < high and _is_plain(kind):
            for address in range(start, high, HEAP_MAX_SIZE):
                if len(found) == MAX_CANDIDATES:
                    return found
                found.append((address, position))
    return found


def _extent(vmas: Vmas, position: int, start: int) -> int:
    """End of the memory that is mapped without a gap from ``start``, at most the size of a heap further."""
    limit, end = start + HEAP_MAX_SIZE, vmas[position].end
    while end < limit and position + 1 < len(vmas):
        position += 1
        vma = vmas[position]
        if vma.start != end or not vma.is_anonymous:
            break
        end = vma.end
    return min(end, limit)
