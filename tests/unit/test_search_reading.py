# SPDX-License-Identifier: Apache-2.0
"""Reading pages of a process whose mappings come and go meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.search.presence import _spans_to_scan
from ebpftrace.search.reading import Reader
from ebpftrace.search.runs import Runs, difference, no_runs, runs_of

PAGE = os.sysconf("SC_PAGE_SIZE")
START = 0x7F0000000000


class Process:
    """Pages that hold their numbers; each refuses to be read so many times, or always."""

    def __init__(self, refusals: Sequence[int]) -> None:
        self.left = list(refusals)

    def read_into(self, buffer: memoryview, address: int) -> int:
        first = (address - START) // PAGE
        done = 0
        for page in range(first, min(len(self.left), first + len(buffer) // PAGE)):
            if self.left[page]:
                self.left[page] -= page == first  # only where a reading begins
                break
            content = np.full(PAGE // 4, page, np.uint32).tobytes()
            buffer[done : done + PAGE] = content
            done += PAGE
        return done

    def still_present(self, runs: Runs) -> Runs:
        return runs


def read(process: Process, pages: int) -> tuple[list[int], int]:
    """The pages that were read, by their numbers, and the bytes that could not be."""
    reader = Reader(process.read_into, process.still_present)
    found = []
    for batch in reader.batches(runs_of([(START, START + pages * PAGE)])):
        numbers = batch.halves.reshape(-1, PAGE // 4)[:, 0].tolist()
        assert batch.page_addresses().tolist() == [START + number * PAGE for number in numbers]
        found += numbers
    return found, reader.unreadable


@given(st.lists(st.sampled_from([0, 0, 0, 1, 1 << 20]), min_size=1, max_size=10))
def test_a_page_that_refuses_once_is_read_and_one_that_always_does_is_counted(refusals: list[int]) -> None:
    """It was unmapped for a moment; only what can never be read leaves a gap."""
    readable = [page for page, times in enumerate(refusals) if times <= 1]
    found, unreadable = read(Process(refusals), len(refusals))
    assert found == readable
    assert unreadable == (len(refusals) - len(readable)) * PAGE


def test_the_kernel_copies_to_the_beginning_of_a_page() -> None:
    """A buffer that begins 16 bytes into one takes it 2.8 times as long."""
    process = Process([0] * 4)
    readers = [Reader(process.read_into, process.still_present) for _ in range(3)]
    batches = [next(reader.batches(runs_of([(START, START + 4 * PAGE)]))) for reader in readers]
    assert [batch.halves.ctypes.data % PAGE for batch in batches] == [0, 0, 0]


def test_what_is_gone_is_no_gap() -> None:
    reader = Reader(lambda _buffer, _address: 0, lambda _runs: no_runs())
    assert list(reader.batches(runs_of([(START, START + 3 * PAGE)]))) == []
    assert reader.unreadable == 0


@given(
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 22)), min_size=1, max_size=40),
    st.integers(1, 8),
)
def test_all_pages_are_scanned_in_a_few_spans(ranges: list[tuple[int, int]], limit: int) -> None:
    spans = runs_of((start, start + size) for start, size in ranges)
    with patch("ebpftrace.search.presence._MAX_SPANS", limit):
        scanned = list(_spans_to_scan(spans))
    assert len(scanned) <= limit + 1
    covered = runs_of(scanned)
    assert difference(spans, covered).pieces == 0
    assert covered.pieces == len(scanned), "ascending, and none adjacent to the next"
