# SPDX-License-Identifier: Apache-2.0
"""What glibc's malloc has mapped: its heaps and large blocks, known by the headers it writes into them.

A heap of an arena other than the main one begins with a ``heap_info``: ar_ptr, prev, size, mprotect_size
(glibc malloc/arena.c).  A block above the mmap threshold has a mapping that begins with a chunk header:
prev_size 0, and its size with IS_MMAPPED set (malloc/malloc.c, sysmalloc_mmap).  Both may lie anywhere in
a VMA, since the kernel merges neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Optional

from ebpftrace.glibc import HEAP_MAX_SIZE
from ebpftrace.model import Heap, Interval, Vma
from ebpftrace.process.books import Readable

_HEAP_INFO = struct.Struct("=4Q")
_CHUNK = struct.Struct("=2Q")
_MOST_HEAP_INFO = 256
"""The arena of a first heap follows its heap_info, which has 32 bytes, 48 since 2.35."""
_IS_MMAPPED = 2
_FLAGS = 7
_PAGE = 4096
MAX_CANDIDATES = 1 << 16
"""Heaps looked for: 4 TiB of memory, far more than malloc's limits of arenas allow."""
_MAX_BLOCKS = 1 << 16


def find_heaps(vmas: Sequence[Vma], memory: Readable) -> list[Heap]:
    """The heaps of malloc's arenas, proved by their headers, with the part not yet in use."""
    firsts: list[Heap] = []
    others: list[tuple[Heap, int]] = []
    for start, position in _candidates(vmas):
        end = _extent(vmas, position, start)
        try:
            arena, previous, size, accessible = _HEAP_INFO.unpack(memory.read(start, _HEAP_INFO.size))
        except OSError:
            continue
        if not 0 < size <= accessible <= HEAP_MAX_SIZE or accessible % _PAGE or start + accessible > end:
            continue
        if not previous and start < arena < start + _MOST_HEAP_INFO:
            firsts.append(Heap(start, end, True))
        elif previous and not previous % HEAP_MAX_SIZE and arena % HEAP_MAX_SIZE < _MOST_HEAP_INFO:
            others.append((Heap(start, end, False), arena - arena % HEAP_MAX_SIZE))
    known = {heap.start for heap in firsts}
    return sorted([*firsts, *(heap for heap, home in others if home in known)])


def guess_heaps(vmas: Sequence[Vma]) -> list[Heap]:
    """Heaps by shape alone: aligned, and the part that can't be touched yet fills them up to their size.

    For where /proc tells the mappings and not the memory; a heap in full use is missed.
    """
    heaps = []
    for start, position in _candidates(vmas):
        end = _extent(vmas, position, start)
        filled = next((vma for vma in vmas[position : position + 2] if vma.guard and vma.end >= end), None)
        if end - start == HEAP_MAX_SIZE and vmas[position].start == start and filled is not None:
            heaps.append(Heap(start, end, True))
    return heaps


def find_blocks(vmas: Sequence[Vma], memory: Readable, taken: Sequence[Interval]) -> list[Interval]:
    """Mappings that hold nothing but large blocks of malloc, one after the other, up to their end.

    Those whose first byte lies in ``taken`` (ascending) are left out, and those without a page in memory.
    """
    blocks: list[Interval] = []
    index = 0
    for vma in vmas:
        if not _is_plain(vma) or not (vma.rss or vma.swap):
            continue
        while index < len(taken) and taken[index].end <= vma.start:
            index += 1
        if index < len(taken) and taken[index].start <= vma.start:
            continue
        start: Optional[int] = vma.start
        while start is not None and start < vma.end and len(blocks) < _MAX_BLOCKS:
            end = _block_end(memory, start, vma.end)
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
    if before or word & _FLAGS != _IS_MMAPPED or not size or size % _PAGE or start + size > limit:
        return None
    return start + size


def _is_plain(vma: Vma) -> bool:
    return vma.is_anonymous and vma.perms.startswith("rw-")


def _candidates(vmas: Sequence[Vma]) -> list[tuple[int, int]]:
    """Addresses where a heap may begin, with the position of their VMA."""
    found: list[tuple[int, int]] = []
    for position, vma in enumerate(vmas):
        if _is_plain(vma):
            start = -(-vma.start // HEAP_MAX_SIZE) * HEAP_MAX_SIZE
            for address in range(start, vma.end, HEAP_MAX_SIZE):
                if len(found) == MAX_CANDIDATES:
                    return found
                found.append((address, position))
    return found


def _extent(vmas: Sequence[Vma], position: int, start: int) -> int:
    """Where the memory that is mapped without a gap from ``start`` ends, at most a heap further."""
    limit, end = start + HEAP_MAX_SIZE, vmas[position].end
    while end < limit and position + 1 < len(vmas):
        position += 1
        vma = vmas[position]
        if vma.start != end or not vma.is_anonymous:
            break
        end = vma.end
    return min(end, limit)
