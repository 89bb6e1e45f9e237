# SPDX-License-Identifier: Apache-2.0
"""Reads pages of a process in large pieces, and says where each word of a piece lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from ebpftrace.search.matching import Halves
from ebpftrace.search.presence import PAGE
from ebpftrace.search.runs import Addresses, Runs, runs_of

BATCH = 1 << 20
"""Bytes read before they are looked at: they stay in the processor's cache until then."""
_RETRIES = 32
_HALF_BYTES = 4


class Batch(NamedTuple):
    """Copies of runs of pages, one after the other."""

    halves: Halves
    """Of the reader's own buffer: gone with the next batch."""
    offsets: NDArray[np.int64]
    """Where each run begins, in bytes from the beginning of the batch."""
    starts: Addresses
    """Its address."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.halves.nbytes

    def addresses(self, positions: NDArray[np.int64]) -> tuple[Addresses, NDArray[np.bool_]]:
        """Where the words at these positions (of 32-bit numbers) lie, and which of them lie in one run."""
        at = positions * _HALF_BYTES
        run = np.searchsorted(self.offsets, at, "right") - 1
        next_run = np.searchsorted(self.offsets, at + _HALF_BYTES, "right") - 1
        return self.starts[run] + (at - self.offsets[run]).astype(np.uint64), run == next_run

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each run."""
        return np.diff(self.offsets, append=self.size)

    def only(self, pages: NDArray[np.bool_]) -> Batch:
        """A batch of some of its pages; those that lie side by side still do."""
        chosen = np.flatnonzero(pages)
        addresses = self.page_addresses()[chosen]
        begins = np.ones(len(chosen), np.bool_)
        begins[1:] = (np.diff(chosen) > 1) | (np.diff(addresses) != PAGE)
        halves = self.halves.reshape(-1, PAGE // _HALF_BYTES)[chosen].ravel()
        return Batch(halves, np.flatnonzero(begins) * PAGE, addresses[begins])

    def page_addresses(self) -> Addresses:
        """The address of each page in it."""
        offsets = np.arange(0, self.size, PAGE)
        if len(self.starts) == 1:
            run = np.zeros(len(offsets), np.int64)
        else:
            run = np.searchsorted(self.offsets, offsets, "right") - 1
        return self.starts[run] + (offsets - self.offsets[run]).astype(np.uint64)


class Reader:
    """Reads pages of one process."""

    def __init__(
        self, read_into: Callable[[memoryview, int], int], still_present: Callable[[Runs], Runs]
    ) -> None:
        """``read_into`` is ``Memory``'s; ``still_present`` says which pages of runs are in memory now."""
        self._read_into = read_into
        self._still_present = still_present
        self._buffer = np.empty(BATCH // _HALF_BYTES, np.uint32)
        self._bytes = self._buffer.data.cast("B")
        self.unreadable = 0
        """Bytes that are in memory and could not be read."""

    def batches(self, runs: Runs, backwards: bool = False) -> Iterator[Batch]:
        """Copies of these pages; what is not in memory any more is left out.

        A run that goes on in the next batch does so a page earlier: no word is cut.
        """
        offsets: list[int] = []
        starts: list[int] = []
        filled = 0
        pieces = zip(runs.starts.tolist(), runs.ends.tolist())
        for start, end in reversed(list(pieces)) if backwards else pieces:
            while start < end:
                count = min(end - start, BATCH - filled)
                for at, size in self._read(start, count, filled):
                    offsets.append(filled)
                    starts.append(at)
                    filled += size
                goes_on = start + count < end
                start += count
                if filled > BATCH - 2 * PAGE:
                    yield self._batch(filled, offsets, starts)
                    offsets, starts, filled = [], [], 0
                    if goes_on:
                        start -= PAGE
        if filled:
            yield self._batch(filled, offsets, starts)

    def _batch(self, filled: int, offsets: list[int], starts: list[int]) -> Batch:
        halves = self._buffer[: filled // _HALF_BYTES]
        return Batch(halves, np.array(offsets, np.int64), np.array(starts, np.uint64))

    def _read(self, start: int, size: int, offset: int) -> Iterator[tuple[int, int]]:
        """Read into the buffer; yields (address, bytes) of each run that was read."""
        end = start + size
        refused: Optional[int] = None
        for _ in range(_RETRIES):
            got = self._read_into(self._bytes[offset : offset + end - start], start) // PAGE * PAGE
            if got:
                yield start, got
                start, offset = start + got, offset + got
            if start >= end:
                return
            left = self._still_present(runs_of([(start, end)]))
            if not left.pieces:
                return
            first = int(left.starts[0])
            if first == start and not got:
                if refused == start:
                    # It is there and can't be read: a poisoned page, a device, memory of the hypervisor.
                    self.unreadable += PAGE
                    first += PAGE
                refused = start  # once only: it was unmapped, perhaps, and is mapped again
            start = first
        self.unreadable += end - start


class Sums:
    """A sum of the words of each page: tells which pages have changed.

    The order of the words in a page does not count: what moves within a page is in it all the same.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Addresses, NDArray[np.int64], NDArray[np.uint32]]] = []
        self._starts = self._ends = np.empty(0, np.uint64)
        self._first = np.empty(0, np.int64)
        self._sums = np.empty(0, np.uint32)

    def add(self, batch: Batch) -> None:
        """Note the pages of a batch."""
        self._parts.append((batch.starts, batch.sizes() // PAGE, _sums(batch)))

    def done(self) -> None:
        """All pages are noted."""
        if self._parts:
            starts = np.concatenate([part for part, _, _ in self._parts])
            counts = np.concatenate([part for _, part, _ in self._parts])
            self._sums = np.concatenate([part for _, _, part in self._parts])
            self._parts = []
            order = np.argsort(starts, kind="stable")
            self._starts = starts[order]
            self._ends = self._starts + counts[order].astype(np.uint64) * np.uint64(PAGE)
            self._first = (np.cumsum(counts) - counts)[order]

    def changed(self, batch: Batch) -> NDArray[np.bool_]:
        """Which pages of the batch differ from what was noted, or were not noted."""
        pages, sums = batch.page_addresses(), _sums(batch)
        if not len(self._starts):
            return np.ones(len(pages), np.bool_)
        run = np.maximum(np.searchsorted(self._starts, pages, "right") - 1, 0)
        known = (self._starts[run] <= pages) & (pages < self._ends[run])
        at = self._first[run] + ((pages - self._starts[run]) // np.uint64(PAGE)).astype(np.int64)
        differs: NDArray[np.bool_] = ~known
        differs[known] = self._sums[at[known]] != sums[known]
        return differs


def _sums(batch: Batch) -> NDArray[np.uint32]:
    words = batch.halves.view(np.uint64).reshape(-1, PAGE // 8)
    sums = np.add.reduce(words, axis=1)
    folded: NDArray[np.uint32] = (sums ^ sums >> np.uint64(32)).astype(np.uint32)
    return folded
