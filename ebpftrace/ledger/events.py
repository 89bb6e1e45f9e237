# SPDX-License-Identifier: Apache-2.0
"""What the kernel's ledger cannot settle by a start address and leaves to Python.

Times are nanoseconds of CLOCK_MONOTONIC, ranges bytes rounded to whole pages as the
kernel rounds them.  Events may arrive in any order: only their times count.
"""

from __future__ import annotations

from typing import NamedTuple, Union

from ebpftrace.model import Interval, Row


class Hole(NamedTuple):
    """A successful munmap, or the range a MAP_FIXED call replaced.

    It takes away what came to lie in ``interval`` strictly before ``at``: the enter of a munmap,
    the exit of a MAP_FIXED mmap or MREMAP_FIXED mremap (whose own row has ``since == at``).
    """

    interval: Interval
    at: int


class Displaced(NamedTuple):
    """A row that lost its slot in the kernel's table and is Python's to keep from now on.

    A newer mapping took the same start while a rest of this one may still be mapped, or the
    kernel gave the row up although a ``Move`` may have carried a part of it elsewhere.
    """

    row: Row


class Move(NamedTuple):
    """A successful mremap that was no plain move of one whole, untouched row.

    Not one that leaves the old range as it is (MREMAP_DONTUNMAP, an old size of 0): that makes a row.
    ``at`` is the enter, ``done_at`` the exit.  ``may_be_empty``: nothing was perhaps mapped at ``old``, and
    then nothing came.
    """

    old: Interval
    new: Interval
    at: int
    done_at: int
    may_be_empty: bool = False


Event = Union[Hole, Displaced, Move]
