# SPDX-License-Identifier: Apache-2.0
"""The suspects of one search as arrays; there may be a hundred thousand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ebpftrace.model import Suspect
from ebpftrace.search.runs import Addresses, Runs, difference, merged, no_runs

Chosen = NDArray[np.bool_]
"""Some of the suspects: one flag each, in their order."""


class Suspected:
    """The addresses of the suspects, and the values that refer to them."""

    def __init__(self, suspects: Sequence[Suspect]) -> None:
        self.suspects = list(dict.fromkeys(suspects))
        count = len(self.suspects)
        self.handles: Addresses = np.fromiter((one.handle or 0 for one in self.suspects), np.uint64, count)
        self.has_handle: Chosen = np.fromiter(
            (one.handle is not None for one in self.suspects), np.bool_, count
        )
        numbered = partial(enumerate, self.suspects)
        self.starts, self.ends, self.owners = _columns(
            (*piece, at) for at, suspect in numbered() for piece in suspect.pieces
        )
        self.pointed_ends: Addresses = np.fromiter(
            (_pointed_end(suspect, *piece) for suspect in self.suspects for piece in suspect.pieces),
            np.uint64,
            len(self.ends),
        )
        """For each piece, the end of the part that a pointer has to point to."""
        self._silent_starts, self._silent_ends, self._silent_owners = _columns(
            (*suspect.silent, at) for at, suspect in numbered() if suspect.silent is not None
        )
        self.reserved_starts, self.reserved_ends, self.reserved_owners = _columns(
            (*suspect.reservation, at)
            for at, suspect in numbered()
            if suspect.reservation is not None and suspect.handle is None
        )

    def __len__(self) -> int:
        return len(self.suspects)

    def pieces_of(self, chosen: Chosen) -> Runs:
        """The memory of the chosen suspects."""
        which = chosen[self.owners]
        return _runs(self.starts[which], self.ends[which])

    def mappings_of(self, chosen: Chosen) -> Runs:
        """The memory of chosen suspects without a handle in which references to others count."""
        which = (chosen & ~self.has_handle)[self._silent_owners]
        silent = _runs(self._silent_starts[which], self._silent_ends[which])
        return difference(self.pieces_of(chosen & ~self.has_handle), silent)

    def descriptors_of(self, chosen: Chosen) -> Runs:
        """The part of a chosen exited thread's stack that a join reads: the descriptor, with the result."""
        which = (chosen & self.has_handle)[self.owners]
        starts = np.maximum(self.starts[which], self.handles[self.owners[which]])
        ends = self.ends[which]
        return _runs(starts[starts < ends], ends[starts < ends])


def _pointed_end(suspect: Suspect, start: int, end: int) -> int:
    """The end of a piece, or the start of the descriptor in it if the pthread was joined.

    A pointer to such a descriptor is a leftover of the C library.
    """
    if suspect.joined and suspect.silent is not None and start < suspect.silent.start < end:
        return suspect.silent.start
    return end


def _columns(rows: Iterable[tuple[int, int, int]]) -> tuple[Addresses, Addresses, NDArray[np.int64]]:
    """Make the columns of a table, without a list of its rows."""
    table = np.fromiter(chain.from_iterable(rows), np.uint64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def _runs(starts: Addresses, ends: Addresses) -> Runs:
    return merged(starts, ends) if len(starts) else no_runs()
