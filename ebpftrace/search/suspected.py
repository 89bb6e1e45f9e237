"""The suspects of one search in arrays: there may be a hundred thousand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebpftrace.model import Suspect
from ebpftrace.search.runs import Addresses, Runs, difference, merged, no_runs

Chosen = NDArray[np.bool_]
"""Some of the suspects: one flag each, in their order."""


class Suspected:
    """Where the suspects lie, and what keeps them."""

    def __init__(self, suspects: Sequence[Suspect]) -> None:
        self.suspects = list(dict.fromkeys(suspects))
        handles = [(suspect.handle or 0, suspect.handle is not None) for suspect in self.suspects]
        pieces = [(*piece, at) for at, suspect in enumerate(self.suspects) for piece in suspect.pieces]
        reserved = [
            (*suspect.reservation, at)
            for at, suspect in enumerate(self.suspects)
            if suspect.reservation is not None and suspect.handle is None
        ]
        silent = [
            (*suspect.silent, at) for at, suspect in enumerate(self.suspects) if suspect.silent is not None
        ]
        pointed = [(start, _pointed_end(self.suspects[at], start, end), at) for start, end, at in pieces]
        table = np.array(handles, np.uint64).reshape(-1, 2)
        self.handles: Addresses = table[:, 0]
        self.has_handle: Chosen = table[:, 1] != 0
        self.starts, self.ends, self.owners = _columns(pieces)
        self.pointed_ends: Addresses = _columns(pointed)[1]
        """Where that ends of each piece which a pointer has to point to."""
        self._silent_starts, self._silent_ends, self._silent_owners = _columns(silent)
        self.reserved_starts, self.reserved_ends, self.reserved_owners = _columns(reserved)

    def __len__(self) -> int:
        return len(self.suspects)

    def pieces_of(self, chosen: Chosen) -> Runs:
        """The memory of some of them."""
        which = chosen[self.owners]
        return _runs(self.starts[which], self.ends[which])

    def mappings_of(self, chosen: Chosen) -> Runs:
        """What of the memory of those that have no handle may keep others."""
        which = (chosen & ~self.has_handle)[self._silent_owners]
        silent = _runs(self._silent_starts[which], self._silent_ends[which])
        return difference(self.pieces_of(chosen & ~self.has_handle), silent)

    def descriptors_of(self, chosen: Chosen) -> Runs:
        """Of exited threads, the part of the stack that a join reads: the descriptor, with the result."""
        which = (chosen & self.has_handle)[self.owners]
        starts = np.maximum(self.starts[which], self.handles[self.owners[which]])
        ends = self.ends[which]
        return _runs(starts[starts < ends], ends[starts < ends])


def _pointed_end(suspect: Suspect, start: int, end: int) -> int:
    """What points to the descriptor of a pthread that was joined is left from the C library."""
    if suspect.joined and suspect.silent is not None and start < suspect.silent.start < end:
        return suspect.silent.start
    return end


def _columns(rows: Sequence[tuple[int, int, int]]) -> tuple[Addresses, Addresses, NDArray[np.int64]]:
    table = np.array(rows, np.uint64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def _runs(starts: Addresses, ends: Addresses) -> Runs:
    return merged(starts, ends) if len(starts) else no_runs()
