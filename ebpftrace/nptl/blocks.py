# SPDX-License-Identifier: Apache-2.0
"""The stack of each descriptor: the offset of the field ``stackblock``, and the mappings it covers.

The mapping around a descriptor need not be its stack: with guards made by MADV_GUARD_INSTALL (glibc 2.42) the
kernel merges neighbouring stacks into one mapping, and a stack given by the application may lie anywhere.
``stackblock`` and ``stackblock_size`` are exact, but no ``_thread_db_`` symbol describes them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Optional

from ebpftrace.addresses import RangeSet
from ebpftrace.model import Interval
from ebpftrace.nptl.lists import Layout, Lists
from ebpftrace.nptl.struct_pthread import Descriptor
from ebpftrace.procfs.memory import Readable
from ebpftrace.vmas import Vmas

_SEARCHED = 256
"""Bytes searched after ``nextevent``; in 2.28 to 2.43 it is followed by ``exc``, 32 bytes (nptl/descr.h)."""
_MIN_STACK = 16384
"""The smallest PTHREAD_STACK_MIN of all architectures."""
_MAX_STACK = 1 << 40
"""Less than any address that mmap returns, so that no pointer is taken for a size."""
_EXC_SIZE = 32
_EXC_ALIGNMENT = 16
_SAMPLES = 16
_FIRST_ENDS = 2


def find_block_offset(lists: Lists, memory: Readable) -> Optional[int]:
    """Derive the offset of ``stackblock`` in ``struct pthread`` from the descriptors themselves.

    It is followed by ``stackblock_size``, ``guardsize`` and ``reported_guardsize``, and the descriptor lies
    inside the block; no other four words of a descriptor have this form.  Returns None if only the first
    thread is listed, or if most samples do not agree.
    """
    forward, backward = lists.layout.next, lists.layout.prev
    ends = [(lists.used, forward), (lists.user, forward), (lists.used, backward), (lists.user, backward)]
    if lists.cache is not None:
        ends.append((lists.cache, forward))
    votes: Counter[int] = Counter()
    samples = 0
    for index, (head, direction) in enumerate(ends):
        # The other ends of broken lists, and the cache (whose address is itself derived), are a fallback.
        if samples and index >= _FIRST_ENDS:
            break
        for descriptor, words in _sample(head, direction, lists, memory):
            samples += 1
            for at in range(len(words) - 3):
                if _is_block(descriptor, lists.layout.size, *words[at : at + 4]):
                    votes[_search_start(lists) + 8 * at] += 1
    agreed = [offset for offset, count in votes.items() if 2 * count >= samples]
    usual = usual_block_offset(lists.layout)
    if usual in agreed:
        return usual
    return agreed[0] if len(agreed) == 1 else None


def usual_block_offset(layout: Layout) -> int:
    """Offset of ``stackblock`` in 2.28 to 2.43, for when it can't be derived."""
    return -(-(layout.next_event + 8) // _EXC_ALIGNMENT) * _EXC_ALIGNMENT + _EXC_SIZE


def _search_start(lists: Lists) -> int:
    return lists.layout.next_event + 8


def _sample(
    head: int, direction: int, lists: Lists, memory: Readable
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield descriptors at one end of a list, as far as it can be followed: (address, words to search)."""
    layout, start = lists.layout, _search_start(lists)
    count = min(_SEARCHED, layout.size - start) // 8
    node = head
    try:
        for _ in range(_SAMPLES):
            (node,) = struct.unpack(lists.order + "Q", memory.read(node + direction, 8))
            if node == head:
                break
            descriptor = node - layout.link
            routine = memory.read(descriptor + layout.start_routine, 8)
            if any(routine):
                words = memory.read(descriptor + start, 8 * count)
                yield descriptor, struct.unpack(f"{lists.order}{count}Q", words)
    except (OSError, OverflowError):
        return


def _is_block(descriptor: int, descriptor_size: int, block: int, size: int, guard: int, asked: int) -> bool:
    return (
        0 < block <= descriptor
        and descriptor + descriptor_size <= block + size
        and _MIN_STACK <= size < _MAX_STACK
        and guard < size
        and asked <= guard
    )


class Mappings:
    """The target's mappings, in which the stacks are found."""

    def __init__(self, vmas: Vmas) -> None:
        self._vmas = vmas
        self._starts, self._ends = vmas.starts, vmas.ends
        # A stack may consist of several mappings: its guard, the zones that Java protects.
        self._mapped = RangeSet(zip(vmas.starts, vmas.ends))

    def stacks(self, descriptors: Iterable[Descriptor]) -> dict[int, Interval]:
        """Find the stack of each descriptor, by its address, if it is mapped; the stacks never overlap.

        glibc makes no stacks that overlap.  If two do, only the lower one is returned, so that a forged list
        can't count a byte twice.
        """
        found: dict[int, Interval] = {}
        last_end = 0
        contains = self._mapped.contains
        for descriptor in sorted(descriptors, key=_lowest_known):
            start = descriptor.block
            if start:
                block = Interval(start, start + descriptor.block_size)
                stack = block if start >= last_end and contains(block) else None
            else:
                stack = self._around(descriptor)
            if stack is not None and stack.start >= last_end:
                found[descriptor.address] = stack
                last_end = stack.end
        return found

    def _around(self, descriptor: Descriptor) -> Optional[Interval]:
        """Find the stack by the mapping around the descriptor."""
        index = bisect_right(self._starts, descriptor.address) - 1
        if index < 0 or self._ends[index] <= descriptor.address:
            return None
        vma, below = self._vmas[index], self._vmas[max(0, index - 1)]
        start = below.start if below.guard and below.end == vma.start else vma.start
        return Interval(start, vma.end)


def _lowest_known(descriptor: Descriptor) -> int:
    return descriptor.block or descriptor.address
