# SPDX-License-Identifier: Apache-2.0
"""Which words refer to which suspects, against a loop over every word."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Optional
from unittest.mock import patch

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from ebpftrace.model import Interval, Suspect
from ebpftrace.search import matching
from ebpftrace.search.matching import Matcher
from ebpftrace.search.suspected import Suspected

PAGE = 4096
BASES = st.sampled_from([0x10000, 0xFFFFF000, 0x100000000, 0x7F3A_0000_0000, 0x7F3B_FFFF_E000])
NARROW = (1 << 32) - 1
WIDE = (1 << 47) - 1


def matcher(about: list[Suspect], highest: int = WIDE) -> Matcher:
    suspected = Suspected(about)
    return Matcher(suspected, np.ones(len(suspected), np.bool_), highest)


@st.composite
def suspects(draw: st.DrawFn) -> list[Suspect]:
    found = []
    for _ in range(draw(st.integers(1, 5))):
        start = draw(BASES) + PAGE * draw(st.integers(0, 6))
        piece = Interval(start, start + PAGE * draw(st.integers(1, 3)))
        kind = draw(st.sampled_from(["handle", "mapping", "pieces", "reserved"]))
        far = Interval(piece.end + PAGE, piece.end + 2 * PAGE)
        found.append(
            Suspect(
                (piece, far) if kind == "pieces" else (piece,),
                piece.end - 2368 if kind == "handle" else None,
                Interval(piece.start - PAGE, piece.end + PAGE) if kind == "reserved" else None,
            )
        )
    return list(dict.fromkeys(found))


@st.composite
def memories(draw: st.DrawFn, about: list[Suspect]) -> bytes:
    """Words near the edges of suspects, at any alignment of 4 bytes, with and without tags."""
    edges = [
        edge + offset
        for suspect in about
        for edge in (
            suspect.handle or suspect.pieces[0].start,
            *suspect.pieces[-1],
            *(suspect.reservation or suspect.pieces[0]),
        )
        for offset in (-8, -1, 0, 1, 4, 8, 16, 24)
    ]
    memory = bytearray()
    for _ in range(draw(st.integers(0, 12))):
        memory += bytes(4 * draw(st.integers(0, 2)))
        tag = draw(st.sampled_from([0, 0, 0, 1 << 56, 0xFF << 56, 1 << 48, 0xFFFA << 48]))
        memory += struct.pack("<Q", draw(st.sampled_from(edges)) | tag)
    return bytes(memory)


def refers(suspect: Suspect, word: int) -> bool:
    address, tag = word & (1 << 48) - 1, word >> 48
    if suspect.handle is not None:
        return address & ~7 == suspect.handle
    beginnings = [piece.start + offset for piece in suspect.pieces for offset in (0, 16)]
    if address & ~7 in beginnings:
        return True
    ranges = [*suspect.pieces, *([suspect.reservation] if suspect.reservation else [])]
    return not tag & 0xFF and any(start <= address < end for start, end in ranges)


@given(st.data())
def test_every_word_that_refers_is_found(data: st.DataObject) -> None:
    about = data.draw(suspects())
    memory = data.draw(memories(about))
    halves = np.frombuffer(memory, np.uint32)
    counted = data.draw(st.sets(st.integers(0, max(0, len(halves) - 1))))

    def counts(positions: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([position not in counted for position in positions.tolist()], np.bool_)

    expected: dict[int, set[int]] = {}
    for position in range(len(halves) - 1):
        (word,) = struct.unpack_from("<Q", memory, 4 * position)
        for index, suspect in enumerate(about):
            if position not in counted and refers(suspect, word):
                expected.setdefault(index, set()).add(position)
    hits = matcher(about).find(halves, counts)
    found = {} if hits is None else dict(zip(hits.suspects.tolist(), hits.positions.tolist()))
    assert found.keys() == expected.keys()
    assert all(position in expected[index] for index, position in found.items())


@given(st.integers(1, 20), st.data())
@example(1, None)
def test_in_a_process_of_32_bits_a_word_has_4_bytes(start: int, data: Optional[st.DataObject]) -> None:
    about = [Suspect((Interval(start * PAGE, (start + 1) * PAGE),))]
    value = start * PAGE + (0 if data is None else data.draw(st.integers(-8, PAGE + 8)))
    halves = np.array([0xFFFFFFFF, value, 0xFFFFFFFF], np.uint32)
    hits = matcher(about, NARROW).find(halves)
    assert (hits is not None) == (start * PAGE <= value < (start + 1) * PAGE)
    if hits is not None:
        assert hits.positions.tolist() == [1]


def test_suspects_that_lie_in_each_other_are_all_referred_to() -> None:
    base = 0x7F00_0000_0000
    about = [Suspect((Interval(base, base + PAGE * (size + 1)),)) for size in range(40)]
    hits = matcher(about).find(np.array([base & NARROW, base >> 32], np.uint32))
    assert hits is not None
    assert sorted(hits.suspects.tolist()) == list(range(40))


def test_addresses_of_57_bits_have_a_tag_in_the_top_byte_only() -> None:
    base = 0x00AB_7F00_0000_0000
    about = [Suspect((Interval(base, base + PAGE),))]
    for word, refers_to_it in ((base, True), (base | 5 << 56, True), (base ^ 1 << 48, False)):
        halves = np.array([word & NARROW, word >> 32], np.uint32)
        assert (matcher(about, base + PAGE).find(halves) is not None) == refers_to_it


def test_what_points_to_the_descriptor_of_a_joined_pthread_keeps_no_stack() -> None:
    base = 0x7F00_0000_0000
    stack = Interval(base, base + 8 * PAGE)
    descriptor = Interval(stack.end - PAGE, stack.end)
    for joined in (True, False):
        about = [Suspect((stack,), silent=descriptor, joined=joined)]
        for value, refers_to_it in (
            (base, True),
            (descriptor.start - 8, True),
            (descriptor.start, not joined),
        ):
            halves = np.array([value & NARROW, value >> 32], np.uint32)
            assert (matcher(about).find(halves) is not None) == refers_to_it
        speaking = Suspected(about).mappings_of(np.array([True]))
        assert [(int(one), int(other)) for one, other in zip(speaking.starts, speaking.ends)] == [
            (stack.start, descriptor.start)
        ]


@given(st.data())
def test_dense_pointers_are_found_as_sparse_ones(data: st.DataObject) -> None:
    """Most words are pointers into the same 4 GiB."""
    about = data.draw(suspects())
    first = about[0].pieces[0]
    near = [first.start + PAGE * at + offset for at in range(-3, 6) for offset in (0, 16, PAGE - 1)]
    words = data.draw(st.lists(st.sampled_from(near), min_size=1, max_size=20))
    shift = data.draw(st.integers(0, 1))
    halves = np.frombuffer(bytes(4 * shift) + struct.pack(f"<{len(words)}Q", *words) + bytes(4), np.uint32)
    with patch.object(matching, "_DENSE", 10**9):
        dense = matcher(about).find(halves)
    with patch.object(matching, "_DENSE", 0):
        sparse = matcher(about).find(halves)
    expected = {index for index, suspect in enumerate(about) if any(refers(suspect, word) for word in words)}
    for hits in (dense, sparse):
        assert expected <= (set() if hits is None else set(hits.suspects.tolist()))
    if dense is None or sparse is None:
        assert dense is sparse
    else:
        assert set(dense.suspects.tolist()) == set(sparse.suspects.tolist())


def test_a_hundred_thousand_suspects_take_little_memory() -> None:
    count, isolated, stack = 100_000, 10 << 20, 8 << 20
    bases = (0x7E0000000000 + at * isolated for at in range(count))
    suspects = [Suspect((Interval(base, base + stack),), base + stack - 2368) for base in bases]
    tracemalloc.start()
    try:
        suspected = Suspected(suspects)
        Matcher(suspected, np.ones(count, np.bool_))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 << 20
