# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Interval, Vma
from ebpftrace.procfs.malloc import MAX_CANDIDATES, find_blocks, find_heaps, guess_heaps
from ebpftrace.vmas import Vmas

HEAP = 64 << 20
START = 0x7F0040000000
PAGE = 4096


class Words:
    """Memory that holds these words and nothing else."""

    def __init__(self, words: dict[int, tuple[int, ...]]) -> None:
        self.words = words

    def read(self, address: int, size: int) -> bytes:
        if address not in self.words:
            raise OSError
        return struct.pack(f"={len(self.words[address])}Q", *self.words[address])[:size].ljust(size, b"\0")


def vma(start: int, end: int, perms: str = "rw-p", rss: int = PAGE) -> Vma:
    return Vma(start, end, perms, 0, "00:00", 0, "", rss, 0, perms.startswith("---"))


def heap_at(start: int, used: int = 33 * PAGE) -> Vmas:
    return Vmas([vma(start, start + used), vma(start + used, start + HEAP, "---p", 0)])


def first(start: int, used: int = 33 * PAGE) -> tuple[int, ...]:
    return (start + 0x30, 0, used, used)


def test_heap_is_proved_by_its_header() -> None:
    (heap,) = find_heaps(heap_at(START), Words({START: first(START)}))
    assert (heap.start, heap.end, heap.first) == (START, START + HEAP, True)


def test_memory_that_only_readings_like_a_heap_is_none() -> None:
    good = first(START)
    for header in (
        (0, 0, 0, 0),
        (START + HEAP, *good[1:]),
        (good[0], 0, good[2] + PAGE, good[3]),
        (good[0], 0, HEAP * 2, HEAP * 2),
        (good[0], START - HEAP, *good[2:]),  # its arena has no first heap
        (good[0], 0, 100, 100),
    ):
        assert find_heaps(heap_at(START), Words({START: header})) == [], header
    assert find_heaps(heap_at(START), Words({})) == []


def test_further_heap_belongs_to_an_arena_that_is_known() -> None:
    second = START + 3 * HEAP
    words = {START: first(START), second: (START + 0x30, START, 8 * PAGE, 8 * PAGE)}
    found = find_heaps(Vmas([*heap_at(START), *heap_at(second)]), Words(words))
    assert [(heap.start, heap.first) for heap in found] == [(START, True), (second, False)]


def test_heaps_in_full_use_that_the_kernel_merged_are_reported_apart() -> None:
    words = {START: first(START, HEAP), START + HEAP: first(START + HEAP, HEAP)}
    found = find_heaps(Vmas([vma(START - 5 * PAGE, START + 2 * HEAP)]), Words(words))
    assert [(heap.start, heap.end) for heap in found] == [
        (START, START + HEAP),
        (START + HEAP, START + 2 * HEAP),
    ]


def test_shape_alone_needs_the_untouchable_rest() -> None:
    assert [heap.start for heap in guess_heaps(heap_at(START))] == [START]
    assert guess_heaps(Vmas([vma(START, START + HEAP)])) == []
    assert guess_heaps(Vmas([vma(START, START + PAGE), vma(START + PAGE, START + 2 * PAGE, "---p")])) == []


def test_huge_mapping_is_not_searched_without_end() -> None:
    reads = 0

    class Counting(Words):
        def read(self, address: int, size: int) -> bytes:  # noqa: ARG002
            nonlocal reads
            reads += 1
            raise OSError

    assert find_heaps(Vmas([vma(HEAP, HEAP * MAX_CANDIDATES * 4)]), Counting({})) == []
    assert reads == MAX_CANDIDATES


def test_blocks_one_after_the_other() -> None:
    words = {START: (0, 0x22000 | 2), START + 0x22000: (0, 0x40000 | 2)}
    blocks = find_blocks(Vmas([vma(START, START + 0x80000)]), Words(words), ())
    assert blocks == [
        Interval(START, START + 0x22000),
        Interval(START + 0x22000, START + 0x62000),
    ]


def test_no_block_without_its_header() -> None:
    for header in ((1, 0x22002), (0, 0x22000), (0, 0x22003), (0, 2), (0, 0x22012), (0, 0x100002)):
        assert find_blocks(Vmas([vma(START, START + 0x80000)]), Words({START: header}), ()) == [], header
    good = Words({START: (0, 0x22002)})
    assert find_blocks(Vmas([vma(START, START + 0x80000, rss=0)]), good, ()) == []
    assert (
        find_blocks(Vmas([vma(START, START + 0x80000)]), good, [Interval(START - PAGE, START + PAGE)]) == []
    )


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=4, max_size=4))
def test_any_words_give_no_area_outside_the_mapping(words: list[int]) -> None:
    vmas = heap_at(START)
    memory = Words({START: tuple(words)})
    for heap in find_heaps(vmas, memory):
        assert heap.start == START
        assert heap.end <= START + HEAP
    for block in find_blocks(vmas, memory, ()):
        assert START <= block.start < block.end <= vmas[0].end
