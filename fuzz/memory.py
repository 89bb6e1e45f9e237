# SPDX-License-Identifier: Apache-2.0
"""Readers of a target's memory: glibc's lists of threads, malloc's heaps and blocks."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ebpftrace.model import Interval, Vma
from ebpftrace.nptl.blocks import Mappings, find_block_offset
from ebpftrace.nptl.lists import Layout, Lists
from ebpftrace.nptl.reading import classify_threads, read_cache
from ebpftrace.nptl.struct_pthread import Format
from ebpftrace.nptl.walk import Walker
from ebpftrace.procfs.malloc import find_blocks, find_heaps, guess_heaps
from ebpftrace.vmas import Vmas
from fuzz.reader import Reader

BASE = 1 << 26
"""Where the bytes lie: aligned as malloc's heaps are."""
_END = 1 << 47
_ENDLESS = 1 << 20
"""Bytes in which a list that never ends finds nodes: one walk of it takes part of the time there is."""
_VERSIONS = ((2, 28), (2, 31), (2, 36), (2, 43))
_LAYOUT = Layout(0x200, 0x10, 0, 8, 0x20, 0x24, 0x50, 0x58, 0x60)
_BLOCK = 0x88
_AREA = struct.Struct("<IHB")
_PERMS = ("rw-p", "---p", "r-xp", "rw-s")


class MemoryOf:
    """Memory that is the given bytes, by the first one: once, repeated up to the end of memory, or with
    pointers in both directions at every place."""

    def __init__(self, data: bytes) -> None:
        self._kind = data[0] % 3 if data else 0
        self._content = data[1:] or b"\0"

    def read(self, address: int, size: int) -> bytes:
        """Raises ``OSError`` where nothing is mapped."""
        at = address - BASE
        if not 0 <= at < _END - BASE - size:
            raise OSError("not mapped")
        if self._kind:
            begin = at % len(self._content)
            times = (begin + size) // len(self._content) + 1
            piece = (self._content * times)[begin : begin + size]
        else:
            piece = self._content[at : at + size]
        if self._kind == 2 and size >= 16 and at < _ENDLESS:
            piece = struct.pack("<QQ", address + 64, address - 64) + piece[16:]
        if len(piece) != size:
            raise OSError("not mapped")
        return piece


def _list_of_three() -> bytes:
    """Three threads, the last two of them exited; the version is the second byte."""
    memory = bytearray(0x1000)
    threads = [0x400, 0x800, 0xC00]
    nodes = [0x10, *(thread + _LAYOUT.link for thread in threads)]
    for index, node in enumerate(nodes):
        after, before = nodes[(index + 1) % len(nodes)], nodes[index - 1]
        struct.pack_into("<QQ", memory, node, BASE + after, BASE + before)
    for head in (0x20, 0x30):
        struct.pack_into("<QQ", memory, head, BASE + head, BASE + head)
    for index, thread in enumerate(threads):
        struct.pack_into("<ii", memory, thread + _LAYOUT.tid, 0 if index else 1, 16 if index else 0)
        struct.pack_into("<Q", memory, thread + _LAYOUT.start_routine, 0x401000)
        struct.pack_into("<4Q", memory, thread + _BLOCK, BASE, 0x10000, 0x1000, 0x1000)
    return bytes(memory)


def _list_seeds() -> Sequence[bytes]:
    return [bytes((kind, version)) + _list_of_three()[1:] for kind in range(3) for version in range(4)]


def _thread_lists(data: bytes) -> object:
    version = _VERSIONS[data[1] % 4 if len(data) > 1 else 0]
    memory = MemoryOf(data)
    used, user, cache = BASE + 0x10, BASE + 0x20, BASE + 0x30
    lists = Lists(version, False, "<", _LAYOUT, used, user, cache, BASE + 0x40, None)
    walker = Walker(memory, Format(lists, find_block_offset(lists, memory)))
    listed = {
        descriptor.address: descriptor
        for head in (used, user)
        for descriptor in walker.walk(head).descriptors
    }
    judged = classify_threads(listed.values(), walker, lambda: frozenset({1}))
    mapped = Vmas([Vma(BASE, BASE + 0x20000, "rw-p", 0, "00:00", 0, "")])
    stacks = sorted(Mappings(mapped).stacks(descriptor for descriptor, _ in judged).values())
    assert _are_isolated(stacks)
    return listed or read_cache(lists, memory, walker).stacks


def _are_isolated(found: Sequence[Interval]) -> bool:
    """No byte counts twice."""
    return all(one.end <= other.start for one, other in zip(found, found[1:]))


def _areas(data: bytes) -> Iterator[Vma]:
    for start, size, kind in _AREA.iter_unpack(data[: len(data) // _AREA.size * _AREA.size]):
        perms = _PERMS[kind % 4]
        begin, guard = start << 16, perms == "---p"
        end = begin + (size << (22 if kind & 128 else 12))
        yield Vma(begin, end, perms, 0, "00:00", 0, "", rss=4096, guard=guard)


def _malloc(data: bytes) -> object:
    """Mappings by the first bytes, their memory by the others."""
    cut = 1 + _AREA.size * (data[0] % 32 if data else 0)
    vmas = Vmas(sorted(_areas(data[1:cut])))
    memory = MemoryOf(data[cut:])
    heaps = find_heaps(vmas, memory)
    guess_heaps(vmas)
    blocks = find_blocks(vmas, memory, [])
    assert _are_isolated(blocks)
    assert _are_isolated([Interval(heap.start, heap.end) for heap in heaps])
    return heaps or blocks


def _malloc_seeds() -> Sequence[bytes]:
    area = b"\1" + _AREA.pack(BASE >> 16, 0x8000, 0)
    heap = struct.pack("<4Q", BASE + 48, 0, 0x21000, 0x21000)
    block = struct.pack("<QQ", 0, 0x1000 | 2).ljust(0x1000, b"\0")
    return [area + bytes((kind,)) + memory for kind in range(2) for memory in (heap, block)]


READERS = (
    Reader("glibc-lists", _thread_lists, _list_seeds),
    Reader("malloc", _malloc, _malloc_seeds),
)
