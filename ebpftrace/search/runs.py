# SPDX-License-Identifier: Apache-2.0
"""Sets of addresses as arrays of sorted, disjoint runs; a process may have a million of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Addresses = NDArray[np.uint64]


class Runs(NamedTuple):
    """Ranges [start, end): ascending, disjoint, none empty, none adjacent to the next."""

    starts: Addresses
    ends: Addresses

    @property
    def size(self) -> int:
        """Bytes of all runs."""
        return int((self.ends - self.starts).sum())

    @property
    def pieces(self) -> int:
        """Number of runs."""
        return len(self.starts)

    def contains(self, addresses: Addresses) -> NDArray[np.bool_]:
        """Which of these addresses are in a run."""
        at = np.searchsorted(self.starts, addresses, "right")
        inside = at > 0
        inside[inside] = addresses[inside] < self.ends[at[inside] - 1]
        return inside


def no_runs() -> Runs:
    """The empty set."""
    return Runs(np.empty(0, np.uint64), np.empty(0, np.uint64))


def runs_of(ranges: Iterable[tuple[int, int]]) -> Runs:
    """The addresses in any of these ranges [start, end), which may overlap and have any order."""
    pairs = [(start, end) for start, end in ranges if start < end]
    if not pairs:
        return no_runs()
    both = np.array(pairs, np.uint64)
    return merged(both[:, 0], both[:, 1])


def merged(starts: Addresses, ends: Addresses) -> Runs:
    """As ``runs_of``, for ranges in two arrays, none of them empty."""
    return _where(starts, ends, 1, starts[:0], ends[:0], 0, 1)


def union(one: Runs, other: Runs) -> Runs:
    """Addresses in either."""
    return merged(np.concatenate((one.starts, other.starts)), np.concatenate((one.ends, other.ends)))


def intersection(one: Runs, other: Runs) -> Runs:
    """Addresses in both."""
    return _where(*one, 1, *other, 1, 2)


def difference(one: Runs, other: Runs) -> Runs:
    """Addresses in the first and not in the second."""
    return _where(*one, 2, *other, -1, 2)


def _where(
    starts: Addresses,
    ends: Addresses,
    weight: int,
    other_starts: Addresses,
    other_ends: Addresses,
    other_weight: int,
    enough: int,
) -> Runs:
    """The addresses for which the weights of the ranges that cover them add up to ``enough``."""
    if not len(starts):
        return no_runs()
    points = np.concatenate((starts, ends, other_starts, other_ends))
    steps = np.repeat(
        np.array([weight, -weight, other_weight, -other_weight], np.int64),
        [len(starts), len(ends), len(other_starts), len(other_ends)],
    )
    order = np.argsort(points, kind="stable")
    points, depth = points[order], np.cumsum(steps[order])
    # Of several steps at one address, only the last has the sum that is valid from there on.
    last = np.append(points[1:] != points[:-1], True)
    points, inside = points[last], depth[last] >= enough
    change = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0))
    bounds = points[change]
    return Runs(bounds[0::2], bounds[1::2])
