# SPDX-License-Identifier: Apache-2.0
"""Free chunks of malloc in memory that is written here as glibc lays it out, and in memory of any content."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.model import Interval, Vma
from ebpftrace.procfs.malloc_free import free_chunks
from ebpftrace.vmas import Vmas

DATA, HEAP, SIZE = 0x7F0000000000, 0x7F0040000000, 0x40000
VMAS = Vmas(
    [
        Vma(DATA, DATA + SIZE, "rw-p", 0, "08:01", 7, "/lib/libc.so.6", 0, 0, False),
        Vma(HEAP, HEAP + SIZE, "rw-p", 0, "00:00", 0, "", SIZE, 0, False),
    ]
)
MAIN, OTHER = DATA + 0x1C60, HEAP + 0x30
BINS = 0x70
"""Of a state, in 2.36."""
BINS_NUMBER = 127


class Space:
    """The data of a libc, and a heap."""

    def __init__(self) -> None:
        self.parts = {DATA: bytearray(SIZE), HEAP: bytearray(SIZE)}

    def read(self, address: int, size: int) -> bytes:
        for start, part in self.parts.items():
            if start <= address and address + size <= start + SIZE:
                return bytes(part[address - start : address - start + size])
        raise OSError

    def put(self, address: int, *words: int) -> None:
        part = self.parts[DATA if address < HEAP else HEAP]
        struct.pack_into(f"={len(words)}Q", part, address % SIZE, *words)

    def arena(self, at: int, *, following: int, top: int, lists: dict[int, list[Interval]]) -> None:
        bins = at + BINS
        self.put(bins - 16, top, 0)
        for index in range(BINS_NUMBER):
            head = bins + 16 * index - 16
            chunks = lists.get(index, [])
            ring = [head, *(chunk.start for chunk in chunks), head]
            self.put(bins + 16 * index, ring[1], ring[-2])
            for number, chunk in enumerate(chunks, 1):
                self.put(chunk.start + 8, chunk.size | 1, ring[number + 1], ring[number - 1])
        self.put(bins + 16 * BINS_NUMBER + 16, following)


def space(lists: dict[int, list[Interval]], more: dict[int, list[Interval]]) -> Space:
    made = Space()
    made.arena(MAIN, following=OTHER, top=HEAP + 0x30000, lists=lists)
    made.arena(OTHER, following=MAIN, top=HEAP + 0x38000, lists=more)
    made.put(HEAP + 0x30008, 0x1001)
    made.put(HEAP + 0x38008, 0x2001)
    return made


def chunk(number: int, size: int) -> Interval:
    return Interval(HEAP + 0x2000 * number, HEAP + 0x2000 * number + size)


TOPS = [Interval(HEAP + 0x30000, HEAP + 0x31000), Interval(HEAP + 0x38000, HEAP + 0x3A000)]


@pytest.mark.parametrize("used", [(0, 1, 5), (125, 124), (0, 125), (60,), ()])
def test_chunks_of_all_bins_and_arenas(used: tuple[int, ...]) -> None:
    lists = {index: [chunk(2 * number + 1, 0x400)] for number, index in enumerate(used)}
    more = {3: [chunk(10, 0x20), chunk(11, 0x1000), chunk(12, 0x40)]}
    found = free_chunks(VMAS, space(lists, more))
    wanted = sorted([*TOPS, *more[3], *(one for chunks in lists.values() for one in chunks)])
    assert found == (2, wanted, True)


def test_a_list_that_does_not_end_is_left() -> None:
    memory = space({4: [chunk(1, 0x100), chunk(2, 0x100)]}, {})
    memory.put(chunk(2, 0).start + 16, chunk(1, 0).start, chunk(1, 0).start)
    arenas, chunks, is_complete = free_chunks(VMAS, memory) or (0, [], True)
    assert (arenas, chunks, is_complete) == (2, [chunk(1, 0x100), chunk(2, 0x100), *TOPS], False)


def test_no_chunk_is_larger_than_its_mapping() -> None:
    memory = space({4: [chunk(1, 1 << 40)]}, {})
    assert free_chunks(VMAS, memory) == (2, TOPS, True)


def test_without_arenas_nothing_is_said() -> None:
    assert free_chunks(VMAS, Space()) is None
    assert free_chunks(Vmas(), Space()) is None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_words_do_no_harm(data: st.DataObject) -> None:
    memory = space({4: [chunk(1, 0x100), chunk(2, 0x100)]}, {60: [chunk(5, 0x200)]})
    places = st.one_of(
        st.integers(0, 0x300).map(lambda word: MAIN + 8 * word),
        st.integers(0, 0x300).map(lambda word: HEAP + 8 * word),
    )
    values = st.one_of(st.integers(0, 2**64 - 1), places)
    for place, value in data.draw(st.lists(st.tuples(places, values), max_size=20)):
        memory.put(place, value)
    found = free_chunks(VMAS, memory)
    if found is not None:
        _, chunks, _ = found
        assert all(a.end <= b.start for a, b in zip(chunks, chunks[1:]))
        assert all(HEAP <= one.start < one.end <= HEAP + SIZE for one in chunks)
