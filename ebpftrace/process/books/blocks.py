"""The stack of each descriptor: where the field ``stackblock`` lies, and which mappings it covers.

The mapping around a descriptor is not its stack: with guards made by MADV_GUARD_INSTALL (glibc 2.42) the
kernel merges neighbouring stacks into one mapping, and a stack given by the application may lie anywhere.
``stackblock`` and ``stackblock_size`` say it exactly, but no ``_thread_db_`` symbol describes them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Optional

from ebpftrace.model import Interval, Vma
from ebpftrace.process.books.descriptors import Descriptor
from ebpftrace.process.books.lists import Lists, Readable

_SEARCHED = 256
"""Bytes searched behind ``nextevent``: 40 in all versions known (exc, then stackblock: nptl/descr.h)."""
_LEAST_STACK = 16384
"""PTHREAD_STACK_MIN, the least of all architectures."""
_MOST_STACK = 1 << 47
_SAMPLES = 16


def find_block_offset(lists: Lists, memory: Readable) -> Optional[int]:
    """Offset of ``stackblock`` in ``struct pthread``, derived from the descriptors themselves.

    It is followed by ``stackblock_size``, ``guardsize`` and ``reported_guardsize``, and the descriptor lies
    inside the block: no other four words look like that.  None where no thread but the first is listed, or
    where the samples do not agree.
    """
    layout = lists.layout
    start = layout.next_event + 8
    size = min(_SEARCHED, layout.size - start) // 8 * 8
    votes: dict[int, int] = {}
    samples = 0
    for head in (lists.used, lists.user):
        node = head
        for _ in range(_SAMPLES):
            try:
                (node,) = struct.unpack(lists.order + "Q", memory.read(node + layout.next, 8))
                if node == head:
                    break
                descriptor = node - layout.link
                routine_at = descriptor + layout.start_routine
                (routine,) = struct.unpack(lists.order + "Q", memory.read(routine_at, 8))
                words = struct.unpack(f"{lists.order}{size // 8}Q", memory.read(descriptor + start, size))
            except (OSError, OverflowError, struct.error):
                break
            if not routine:
                continue
            samples += 1
            for index in range(len(words) - 3):
                if _is_block(descriptor, layout.size, *words[index : index + 4]):
                    votes[start + 8 * index] = votes.get(start + 8 * index, 0) + 1
    best = [offset for offset, count in votes.items() if count == samples]
    return best[0] if len(best) == 1 else None


def _is_block(descriptor: int, descriptor_size: int, block: int, size: int, guard: int, asked: int) -> bool:
    return (
        0 < block <= descriptor
        and descriptor + descriptor_size <= block + size
        and _LEAST_STACK <= size < _MOST_STACK
        and guard < size
        and asked <= guard
    )


class Mappings:
    """The target's mappings, for finding stacks among them."""

    def __init__(self, vmas: Sequence[Vma]) -> None:
        self._vmas = vmas
        self._starts = [vma.start for vma in vmas]
        self._ends = [vma.end for vma in vmas]

    def stacks(self, descriptors: Iterable[Descriptor]) -> dict[int, Interval]:
        """The stack of each descriptor (by its address) that has one mapped; stacks never overlap.

        Of two that overlap, which glibc never makes, the lower one counts: a forged list cannot count a
        byte twice.
        """
        found: dict[int, Interval] = {}
        last_end = 0
        for descriptor in sorted(descriptors, key=lambda descriptor: descriptor.block or descriptor.address):
            stack = self._stack(descriptor, last_end)
            if stack is not None and stack.start >= last_end:
                found[descriptor.address] = stack
                last_end = stack.end
        return found

    def _stack(self, descriptor: Descriptor, last_end: int) -> Optional[Interval]:
        if descriptor.block:
            if descriptor.block < last_end:
                return None
            block = Interval(descriptor.block, descriptor.block + descriptor.block_size)
            return block if self._mapped(block.start, block.end) else None
        index = bisect_right(self._starts, descriptor.address) - 1
        if index < 0 or self._ends[index] <= descriptor.address:
            return None
        vma, below = self._vmas[index], self._vmas[max(0, index - 1)]
        start = below.start if below.guard and below.end == vma.start else vma.start
        return Interval(start, vma.end)

    def _mapped(self, start: int, end: int) -> bool:
        """Every byte is mapped; a stack may consist of several VMAs (guard; the zones Java protects)."""
        index = bisect_right(self._starts, start) - 1
        if index < 0 or self._ends[index] <= start:
            return False
        while self._ends[index] < end:
            if index + 1 == len(self._starts) or self._starts[index + 1] != self._ends[index]:
                return False
            index += 1
        return True
