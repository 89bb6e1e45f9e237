# SPDX-License-Identifier: Apache-2.0
"""Reads pages of a process in large pieces, and maps positions in a piece to addresses."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from ebpftrace.search.matching import Halves
from ebpftrace.search.runs import Addresses, Runs, runs_of
from ebpftrace.units import PAGE

BATCH = 1 << 20
"""Bytes that are read before they are searched; so many stay in the processor's cache until then."""
_RETRIES = 32
_HALF_BYTES = 4


class Batch(NamedTuple):
    """Copies of runs of pages, one after the other."""

    halves: Halves
    """A part of the reader's buffer, overwritten by the next batch."""
    offsets: NDArray[np.int64]
    """The start of each run, in bytes from the start of the batch."""
    starts: Addresses
    """The address of each run."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.halves.nbytes

    def addresses(self, positions: NDArray[np.int64]) -> tuple[Addresses, NDArray[np.bool_]]:
        """Addresses of the words at these positions (in 32-bit numbers), and which of them are in one run."""
        at = positions * _HALF_BYTES
        run = np.searchsorted(self.offsets, at, "right") - 1
        next_run = np.searchsorted(self.offsets, at + _HALF_BYTES, "right") - 1
        return self.starts[run] + (at - self.offsets[run]).astype(np.uint64), run == next_run

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each run."""
        return np.diff(self.offsets, append=self.size)

    def only(self, pages: NDArray[np.bool_]) -> Batch:
        """A batch of only these pages; adjacent pages stay in one run."""
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
        """``read_into`` is ``Memory``'s; ``still_present`` returns the pages of runs that are in memory."""
        self._read_into = read_into
        self._still_present = still_present
        # Not malloc's: 16 bytes into a page, which the kernel takes 2.8 times as long to copy to (AMD EPYC,
        # measured: 0.9 s of CPU time a GiB instead of 0.33).
        self._buffer = np.frombuffer(mmap.mmap(-1, BATCH), np.uint32)
        self._bytes = self._buffer.data.cast("B")
        self.unreadable = 0
        """Bytes that are in memory but could not be read."""

    def batches(self, runs: Runs, backwards: bool = False) -> Iterator[Batch]:
        """Yield copies of these pages, without those that are no longer in memory.

        If a run continues in the next batch, its last page is repeated there, so that no word is cut.
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
                    # It is present but not readable: a poisoned page, a device, memory of the hypervisor.
                    self.unreadable += PAGE
                    first += PAGE
                refused = start  # try once more: it may have been unmapped and mapped again meanwhile
            start = first
        self.unreadable += end - start


class Sums:
    """A checksum of each page, which shows the pages that have changed.

    It is the sum of the words, so it does not depend on their order: a handle that moves within a page is
    still in it.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Addresses, NDArray[np.int64], NDArray[np.uint32]]] = []
        self._starts = self._ends = np.empty(0, np.uint64)
        self._first = np.empty(0, np.int64)
        self._sums = np.empty(0, np.uint32)

    def add(self, batch: Batch) -> None:
        """Add the pages of a batch."""
        self._parts.append((batch.starts, batch.sizes() // PAGE, _sums(batch)))

    def done(self) -> None:
        """Build the index, after all pages were added."""
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
        """Which pages of the batch have another sum than before, or were not added."""
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
