# SPDX-License-Identifier: Apache-2.0
"""The parsers of maps and smaps against text made the way the kernel makes it."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ebpftrace.model import Vma
from ebpftrace.procfs.maps import (
    _kind,
    _parse_at_once,
    _parse_each,
    heap_end,
    parse_maps,
    parse_smaps,
    read_heap_end,
    read_maps,
    read_smaps,
)
from ebpftrace.vmas import Vmas

PAGE = 4096
PATH_COLUMN = 73
"""Where the kernel of a 64-bit machine begins the path (fs/proc/task_mmu.c, show_vma_header_prefix)."""

perms = st.tuples(*map(st.sampled_from, ("r-", "w-", "x-", "ps"))).map("".join)
path_bytes = st.one_of(
    st.sampled_from(
        [
            b"",
            b"[heap]",
            b"[anon: glibc: pthread stack: 17]",
            b"/memfd:x (deleted)",
            b"/a b ",
            b"/" + b"x" * 4095,
            b"/Rss:  7 kB",
            b"/7f00-8f00 rw-p 0 0:0 0 ",
            b"/\r\x1b[2J\x0b\x0c\x1c\x85",
        ]
    ),
    st.binary(min_size=1, max_size=40).map(lambda name: b"/" + name.replace(b"\n", b"\\012")),
)


@st.composite
def vma_lists(draw: st.DrawFn) -> list[Vma]:
    """Ascending, disjoint mappings, figures included.

    They are anywhere in a 64-bit address space, or where all addresses have 12 digits.
    """
    lowest, end = draw(st.sampled_from([(0, 1 << 52), (1 << 32, 1 << 36)]))
    edges = sorted(draw(st.sets(st.integers(lowest, end - 1), max_size=24)))
    vmas = []
    for start, end in zip(edges[::2], edges[1::2]):
        access = draw(perms)
        path = draw(path_bytes)
        vmas.append(
            Vma(
                start=start * PAGE,
                end=end * PAGE,
                perms=access,
                offset=draw(st.integers(0, (1 << 64) - 1)),
                device=f"{draw(st.integers(0, 4095)):02x}:{draw(st.integers(0, 1 << 20)):02x}",
                inode=draw(st.integers(0, (1 << 64) - 1)),
                path=path.decode("utf-8", "surrogateescape"),
                rss=draw(st.integers(0, 1 << 40)) * 1024,
                swap=draw(st.integers(0, 1 << 40)) * 1024,
                guard=access.startswith("---"),
                page=draw(st.sampled_from([PAGE, 2 << 20])),
            )
        )
    return vmas


def line(vma: Vma) -> bytes:
    head = f"{vma.start:08x}-{vma.end:08x} {vma.perms} {vma.offset:08x} {vma.device} {vma.inode} "
    path = os.fsencode(vma.path)
    return (head.ljust(PATH_COLUMN).encode() + path if path else head.encode()) + b"\n"


def figures(vma: Vma) -> bytes:
    assert vma.rss is not None
    assert vma.swap is not None
    return (
        f"Size:           {vma.size // 1024:8} kB\nKernelPageSize: {vma.page // 1024:8} kB\n"
        f"Rss:            {vma.rss // 1024:8} kB\nPss:            {vma.rss // 2048:8} kB\n"
        f"Swap:           {vma.swap // 1024:8} kB\nSwapPss:               9 kB\n"
        f"THPeligible:           0\nVmFlags: rd wr mr mw me ac \n"
    ).encode()


def without_figures(vma: Vma) -> Vma:
    return Vma(vma.start, vma.end, vma.perms, vma.offset, vma.device, vma.inode, vma.path, guard=vma.guard)


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in zip(edges, edges[1:])]


@given(vma_lists(), st.lists(st.integers(0, 1 << 20), max_size=5))
def test_maps_come_out_as_they_went_in_however_the_text_is_cut(vmas: list[Vma], places: list[int]) -> None:
    text = b"".join(map(line, vmas))
    assert list(parse_maps(cut(text, places))) == [without_figures(vma) for vma in vmas]


@given(vma_lists(), st.lists(st.integers(0, 1 << 20), max_size=5))
def test_smaps_come_out_as_they_went_in_however_the_text_is_cut(vmas: list[Vma], places: list[int]) -> None:
    text = b"".join(line(vma) + figures(vma) for vma in vmas)
    assert list(parse_smaps(cut(text, places))) == vmas


HEX_RANGES = st.tuples(*[st.integers(1 << 40, 1 << 52)] * 2).map(lambda pair: "{:x}-{:x}".format(*pair))
"""Ranges of 10 to 14 digits an address, some of which only seem to be of the usual length."""
ODD_RANGES = st.sampled_from(
    ["7f0000000000-7f000000100 ", "7f000000000g-7f0000001000", "7f0000000000 7f0000001000"]
)


@example(["7f0000000000-7f0000001000", "fffffffffff-1000000000000", "7f0000000000-7f000000100 "])
@given(st.lists(HEX_RANGES | ODD_RANGES, min_size=1, max_size=4))
def test_records_parsed_at_once_are_parsed_as_one_by_one(ranges: list[str]) -> None:
    records = [f"{text} rw-p 00000000 00:00 0 ".encode() for text in ranges]
    kind_of = lru_cache(_kind)
    together = _parse_at_once(records, kind_of)
    if together is not None:
        each = _parse_each(records, kind_of)
        assert tuple(map(list, together)) == tuple(map(list, each))


def test_usual_records_are_parsed_at_once() -> None:
    record = b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 "
    assert _parse_at_once([record, record], _kind) is not None
    assert _parse_at_once([record, b"400000-401000 rw-p 00000000 00:00 0 "], _kind) is None


@given(vma_lists(), st.lists(st.integers(0, 1 << 20), max_size=5))
def test_the_heap_ends_where_its_last_area_does_however_the_text_is_cut(
    vmas: list[Vma], places: list[int]
) -> None:
    text = b"".join(map(line, vmas))
    ends = [vma.end for vma in vmas if vma.path == "[heap]"]
    assert heap_end(cut(text, places)) == max(ends, default=0)


def test_the_text_is_read_no_further_than_to_the_end_of_the_heap() -> None:
    def area(number: int, path: str) -> bytes:
        return line(Vma(number * PAGE, (number + 1) * PAGE, "rw-p", 0, "00:00", 0, path))

    def chunks() -> Iterator[bytes]:
        yield b"".join(area(number, "/tmp/x [heap]") for number in range(2000))
        yield b"".join(area(number, "[heap]") for number in range(2000, 4000))
        yield b"".join(area(number, "[heap]") for number in range(4000, 4001))
        yield b"".join(area(number, "") for number in range(4001, 6000))
        yield b"".join(area(number, "") for number in range(6000, 8000))
        pytest.fail("it is read to its end")

    assert heap_end(chunks()) == 4001 * PAGE


def test_our_own_heap_is_where_our_break_is() -> None:
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    assert read_heap_end(os.getpid()) == libc.sbrk(0)


@given(st.binary(max_size=2000))
@example(b"7f-")
@example(b"9-1 rw-p 0 0:0 0 \n")
@example(b"1-2 rw-p 0 0:0 " + b"9" * 5000 + b" \nRss: x\nSwap:\nVmFlags:")
@example(b"1-2 rw-p 0 0:0 9 \nRss: " + b"9" * 5000 + b" kB\nSwap:\nVmFlags:")
def test_any_bytes_are_survived(text: bytes) -> None:
    heap_end([text])
    for vmas in (parse_maps([text]), parse_smaps([text])):
        assert_disjoint(vmas)


@given(vma_lists(), vma_lists())
def test_overlaps_are_cut_and_nothing_mapped_is_lost(first: list[Vma], second: list[Vma]) -> None:
    # The kernel goes on where the last one ended, so no two end at the same address.
    together = sorted({one.end: one for one in first + second}.values(), key=attrgetter("end"))
    result = Vmas(together)
    assert_disjoint(result)
    assert [result[position] for position in range(len(result))] == list(result) == result[:]
    for vma in result:
        assert any(one.start <= vma.start and vma.end == one.end for one in together)
    for vma in together:
        assert covered(result, vma.end - PAGE)
        ends = [one.end for one in together if one.end < vma.end]
        assert covered(result, max(vma.start, *ends, 0))


@given(vma_lists(), vma_lists(), st.integers(0, 50))
def test_many_at_once_are_added_as_one_by_one(first: list[Vma], second: list[Vma], cut: int) -> None:
    together = sorted({one.end: one for one in first + second}.values(), key=attrgetter("end"))
    result = Vmas()
    for part in (together[:cut], together[cut:]):
        result.extend([vma.start for vma in part], [vma.end for vma in part], part)
    assert list(result) == list(Vmas(together))


def test_a_mapping_that_grew_downwards_while_it_was_listed_is_listed_once() -> None:
    before = Vma(PAGE, 2 * PAGE, "r--p", 0, "fe:00", 7, "/lib")
    merged = Vma(PAGE, 4 * PAGE, "r--p", 0, "fe:00", 7, "/lib")
    assert list(Vmas([before, merged])) == [
        before,
        Vma(2 * PAGE, 4 * PAGE, "r--p", PAGE, "fe:00", 7, "/lib"),
    ]


def test_our_own_mappings_are_those_that_the_kernel_lists() -> None:
    gc.collect()  # what other tests left mapped goes now, not between the two readings
    ours = {(vma.start, vma.perms, vma.path) for vma in read_maps(os.getpid()) if vma.inode}
    listed = set()
    for text in Path("/proc/self/maps").read_text().splitlines():
        fields = text.split(maxsplit=5)
        if fields[4] != "0":
            listed.add((int(fields[0].split("-")[0], 16), fields[1], fields[5]))
    assert ours == listed


def test_resident_bytes_add_up_to_what_the_kernel_says() -> None:
    vmas = read_smaps(os.getpid())
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    resident = next(int(text.split()[1]) * 1024 for text in rollup if text.startswith("Rss:"))
    assert abs(sum(vma.rss or 0 for vma in vmas) - resident) < 8 << 20
    assert all(vma.rss is not None and vma.rss <= vma.size for vma in vmas)


def covered(vmas: Sequence[Vma], address: int) -> bool:
    return any(vma.start <= address < vma.end for vma in vmas)


def assert_disjoint(vmas: Sequence[Vma]) -> None:
    assert all(vma.start < vma.end for vma in vmas)
    assert all(one.end <= other.start for one, other in zip(vmas, vmas[1:]))
