# SPDX-License-Identifier: Apache-2.0
"""The events that the BPF programs send: changes that a start address alone cannot settle.

Times are nanoseconds of CLOCK_MONOTONIC, ranges bytes rounded to whole pages as the
kernel rounds them.  Events may arrive in any order: only their times count.
"""

from __future__ import annotations

from typing import NamedTuple, Union

from ebpftrace.model import Interval, Row


class Unmapped(NamedTuple):
    """A successful munmap, or the range a MAP_FIXED call replaced.

    It removes what was placed in ``interval`` strictly before ``at``, which is the entry of a munmap or
    the exit of a MAP_FIXED mmap or MREMAP_FIXED mremap (the row of that call has ``since == at``).
    """

    interval: Interval
    at: int


class Evicted(NamedTuple):
    """A row that left the BPF map although a part of it may still be mapped; Python keeps it from now on.

    Either a newer mapping has the same start, or a ``Remapped`` may have moved a part of the row elsewhere.
    """

    row: Row


class Remapped(NamedTuple):
    """A successful mremap, except the plain move of one whole row, for which the BPF program moves the row.

    A call that keeps the old range (MREMAP_DONTUNMAP, an old size of 0) makes a row instead.  ``at`` is the
    entry, ``done_at`` the exit.  ``may_be_empty``: perhaps nothing was mapped at ``old``, so nothing was
    moved.
    """

    old: Interval
    new: Interval
    at: int
    done_at: int
    may_be_empty: bool = False


Event = Union[Unmapped, Evicted, Remapped]
