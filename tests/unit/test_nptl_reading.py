# SPDX-License-Identifier: Apache-2.0
"""The walk and the judgement, against a model of glibc that writes while it is read."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nptl_model import BLOCK, CACHE, HEADS, USED, Nptl, lists
from steps import lines_run

from ebpftrace.model import Interval, ListedThread, Vma
from ebpftrace.nptl.blocks import Mappings, find_block_offset
from ebpftrace.nptl.reading import classify_threads
from ebpftrace.nptl.struct_pthread import Descriptor, Format, ThreadState
from ebpftrace.nptl.walk import MAX_NODES, Walker
from ebpftrace.vmas import Vmas

VERSIONS = st.sampled_from([(2, 31), (2, 36), (2, 43)])


@given(
    seed=st.integers(0, 2**32),
    version=VERSIONS,
    dead=st.integers(0, 12),
    pace=st.sampled_from([0.0, 0.05, 0.5, 2.0, 9.0, 40.0]),
)
@settings(max_examples=300)
def test_what_is_proved_was_so(seed: int, version: tuple[int, int], dead: int, pace: float) -> None:
    nptl = Nptl(version, random.Random(seed))
    kept = nptl.begin(dead)
    nptl.pace = 30
    for _ in range(50):
        nptl.advance()
    nptl.pace = pace
    if seed % 2:
        nptl.finish()
    known: dict[int, ListedThread] = {}
    for reading in range(5):
        nptl.forget()
        walker = Walker(nptl, Format(lists(version), BLOCK))
        walk = walker.walk(USED)
        # The first reading proves nothing by itself; a later one takes what both found for proved.
        confirm = reading > 0
        fates = classify_threads(walk.descriptors, walker, lambda: frozenset(nptl.live), known, confirm)
        known = {
            descriptor.address: ListedThread(*descriptor[:3], None, False, True, False, descriptor.fields)
            for descriptor, state in fates
            if state is ThreadState.EXITED
        }
        if not confirm:
            continue
        proved = {descriptor.address for descriptor, state in fates if state is ThreadState.EXITED}
        assert proved <= nptl.were_dead
        assert len(walk.descriptors) == len({descriptor.address for descriptor in walk.descriptors})
        if walk.complete:
            assert kept <= proved
        if not pace and nptl.between:
            assert walk.complete
            assert proved == nptl.dead


@pytest.mark.parametrize(
    ("cancelhandling", "state"),
    [(1 << 4, ThreadState.JOINED), (0, ThreadState.EXITED)],
    ids=["detached just now", "bare exit"],
)
def test_a_detached_thread_that_exited_keeps_its_stack_only_after_a_bare_exit(
    cancelhandling: int, state: ThreadState
):
    at = 0x7F0000001700
    ended = Descriptor(at, 0, 0, 0, cancelhandling, 0, at, 0x401000, at - 0x1700, 0x2000)
    form = Format(lists((2, 36)), BLOCK)
    assert form.detached(ended)
    assert form.state(ended, frozenset()) is state


class Scattered:
    """Memory of 64 nodes that lead anywhere."""

    def __init__(self, words: list[int]) -> None:
        self.words = words
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        self.reads += 1
        if not HEADS <= address < HEADS + 64 * 1024:
            raise OSError
        index = (address - HEADS) // 1024
        words = [self.words[(index * 7 + at) % len(self.words)] for at in range(size // 8 + 1)]
        return struct.pack(f"<{len(words)}Q", *words)[:size]


_POINTERS = st.one_of(
    st.integers(0, 63).map(lambda index: HEADS + 1024 * index),
    st.integers(0, 2**64 - 1),
)


@given(words=st.lists(_POINTERS, min_size=1, max_size=60), block=st.sampled_from([None, BLOCK]))
@settings(max_examples=500)
def test_a_walk_over_anything_ends(words: list[int], block: int) -> None:
    memory = Scattered(words)
    walker = Walker(memory, Format(lists((2, 36)), block))
    found = walker.walk(HEADS).descriptors
    assert len({descriptor.address for descriptor in found}) == len(found) <= 64
    assert memory.reads < 5000
    find_block_offset(lists((2, 36)), memory)
    classify_threads(found, walker, lambda: frozenset({1}))


class Endless:
    """A consistent list that never ends, in memory that costs nothing."""

    SPACING = 64

    def read(self, address: int, size: int) -> bytes:
        step = -self.SPACING if address >= 1 << 40 else self.SPACING
        return struct.pack("<QQ", address + step, address - step).ljust(size, b"\0")[:size]


def test_an_endless_list_ends() -> None:
    walk = Walker(Endless(), Format(lists((2, 36)), None)).walk(HEADS)
    assert not walk.complete
    assert len(walk.descriptors) <= 2 * MAX_NODES


@pytest.mark.parametrize("version", [(2, 31), (2, 36), (2, 43)])
def test_the_block_is_found_from_the_used_list_or_the_cache(version: tuple[int, int]) -> None:
    nptl = Nptl(version, random.Random(1))
    assert find_block_offset(lists(version), nptl) is None
    nptl.begin(3)
    assert find_block_offset(lists(version), nptl) == BLOCK
    for descriptor in sorted(nptl.dead):
        nptl.settle(nptl.join(descriptor))
    assert nptl._pointer(CACHE) != CACHE
    assert find_block_offset(lists(version), nptl) == BLOCK


def _vma(start: int, end: int, perms: str = "rw-p") -> Vma:
    return Vma(start, end, perms, 0, "00:00", 0, "", guard=perms == "---p")


def _descriptor(address: int, block: int, size: int) -> Descriptor:
    return Descriptor(address, 0, 0, 0, 0, 0, 0, 1, block, size)


def test_stacks_are_the_blocks_whatever_the_kernel_merged() -> None:
    mappings = Mappings(
        Vmas([_vma(0x10000, 0x40000), _vma(0x50000, 0x51000, "---p"), _vma(0x51000, 0x60000)])
    )
    stacks = mappings.stacks(
        [
            _descriptor(0x1F800, 0x10000, 0x10000),
            _descriptor(0x2F800, 0x20000, 0x10000),
            _descriptor(0x5F800, 0x50000, 0x10000),
        ]
    )
    assert stacks == {
        0x1F800: Interval(0x10000, 0x20000),
        0x2F800: Interval(0x20000, 0x30000),
        0x5F800: Interval(0x50000, 0x60000),
    }


def test_forged_blocks_do_not_make_each_stack_cost_all_mappings() -> None:
    """Each claims all mappings above it, which lie side by side, and one byte more."""
    count = 400
    end = (1 + count) << 12
    vmas = Vmas([_vma(at << 12, (at + 1) << 12, "rw-p" if at % 2 else "---p") for at in range(1, 1 + count)])
    forged = [_descriptor(at << 12, at << 12, end + 1 - (at << 12)) for at in range(1, 1 + count)]
    assert Mappings(vmas).stacks(forged) == {}
    lines = lines_run(lambda: Mappings(vmas).stacks(forged))
    assert lines < 100 * count


def test_without_the_field_the_mapping_and_its_guard_are_the_stack() -> None:
    mappings = Mappings(
        Vmas([_vma(0x50000, 0x51000, "---p"), _vma(0x51000, 0x60000), _vma(0x70000, 0x80000)])
    )
    stacks = mappings.stacks([_descriptor(0x5F800, 0, 0), _descriptor(0x7F800, 0, 0), _descriptor(1, 0, 0)])
    assert stacks == {0x5F800: Interval(0x50000, 0x60000), 0x7F800: Interval(0x70000, 0x80000)}


_NUMBER = st.integers(0, 0x40000)


@given(
    claims=st.lists(st.tuples(_NUMBER, _NUMBER, _NUMBER), max_size=30),
    edges=st.lists(_NUMBER, max_size=20, unique=True),
)
def test_no_byte_is_counted_twice_and_none_that_is_not_mapped(
    claims: list[tuple[int, int, int]], edges: list[int]
) -> None:
    edges.sort()
    vmas = [_vma(start, end) for start, end in zip(edges[::2], edges[1::2])]
    stacks = sorted(Mappings(Vmas(vmas)).stacks(_descriptor(*claim) for claim in claims).values())
    for one, other in zip(stacks, stacks[1:]):
        assert one.end <= other.start
    for stack in stacks:
        inside = sum(max(0, min(stack.end, vma.end) - max(stack.start, vma.start)) for vma in vmas)
        assert inside == stack.size
