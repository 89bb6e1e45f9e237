# SPDX-License-Identifier: Apache-2.0
"""How much room the kernel's tables get, and the memory that takes; pure.

The limits of a machine say nothing of its processes: vm.max_map_count is 65,530 by default, a million on many
distributions and 2**31 where games are played.  So the tables have room for a start, or for a multiple of
what the targets have by now; what finds no room is counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ebpftrace.kernel.layout import (
    COPY_ARGUMENT,
    COPY_HEAD,
    IMAGE_AUXV,
    IMAGE_HEAD,
    KEEPERS,
    MAX_SPACES,
    NAME_SLOT,
    PATH_NAMES,
    PLACES,
    PYTHON_FRAME,
    PYTHON_FRAMES,
    REGISTER_BYTES,
    RUNNERS,
    Follow,
    LifeKeyT,
    LifeT,
    MappingT,
    SiteT,
    Sizes,
    SpaceT,
    ThreadT,
    ToldT,
    TouchedT,
)

_ROWS = 262_144
"""Mappings: twice as many as two processes with 65,530 can have, as those of which parts are gone linger."""
_THREADS = 32_768
_SITES = 16_384
_ROWS_PREALLOCATED, _THREADS_PREALLOCATED, _SITES_PREALLOCATED = 49_152, 8192, 8192
"""Where the room itself takes memory, which none of the processes may ever need."""
_MOST_ROWS = 1 << 23
_MOST_ROWS_PREALLOCATED = 1 << 20

_ELEMENT, _BUCKET = 48, 16
"""Bytes of ``struct htab_elem`` before the key, and of ``struct bucket`` (kernel/bpf/hashtab.c)."""
_RECORDED_CALLS = 4
_PAGES_OF_A_RING = 3
_WORDS = 24


@dataclass(frozen=True)
class Needs:
    """What is to be traced, and how."""

    mapped: Sequence[int]
    """Areas that each process has now."""
    tasks: int
    """Of all of them."""
    most_mapped: int
    """vm.max_map_count"""
    most_tasks: int
    """kernel.pid_max"""
    max_mappings: Optional[int] = None
    """Rows that the user asks for."""
    stack_bytes: int = 0
    copies_per_second: int = 0
    """For each CPU."""
    follow: Follow = Follow.NOTHING
    threads_only: bool = False
    """No system call is traced, so the ledger has no rows."""


def sizes(needs: Needs, preallocated: bool) -> Sizes:
    """Return the room for these processes.

    ``preallocated``: the kernel can't allocate entries as they come (before Linux 6.1).
    """
    now = sum(needs.mapped)
    if needs.max_mappings is not None:
        rows = needs.max_mappings
    elif preallocated:
        rows = min(max(_ROWS_PREALLOCATED, now), _MOST_ROWS_PREALLOCATED)
    else:
        rows = min(max(_ROWS, 4 * now), _MOST_ROWS)
    # Twice: rows of which only parts were unmapped, one after the other, linger.
    rows = max(1, min(rows, 2 * needs.most_mapped * max(1, len(needs.mapped))))
    threads = 2 * needs.tasks + (_THREADS_PREALLOCATED if preallocated else max(_THREADS, rows // 8))
    return Sizes(
        mappings=1 if needs.threads_only else rows,
        # Each has left a mapping at least, or moved the break.
        exited=max(1, rows // 2) if needs.max_mappings is None else rows,
        threads=min(threads, needs.most_tasks),
        sites=_SITES_PREALLOCATED if preallocated else _SITES,
        stack_bytes=needs.stack_bytes,
        copies_per_second=needs.copies_per_second,
        follow=needs.follow,
    )


def kernel_bytes(of: Sizes, preallocated: bool, cpus: int, page: int, machine: str) -> int:
    """Return what empty tables take of the kernel's memory, in bytes; within a tenth of what it charges."""
    hashes = (
        (of.mappings, 8, ctypes.sizeof(MappingT)),
        (of.exited, ctypes.sizeof(LifeKeyT), ctypes.sizeof(LifeT)),
        (of.threads, 8, ctypes.sizeof(ThreadT)),
        (of.sites, 8, ctypes.sizeof(SiteT)),
    )
    total = 0
    for entries, key, leaf in hashes:
        total += _BUCKET << (entries - 1).bit_length()
        if preallocated:
            total += (entries + cpus) * (_ELEMENT + key + leaf)
    total += MAX_SPACES * (ctypes.sizeof(SpaceT) + ctypes.sizeof(ToldT)) + 8 * (KEEPERS + RUNNERS)
    total += PLACES * ctypes.sizeof(TouchedT)
    rings = (of.event_pages, of.copy_pages, of.image_pages)
    total += sum(pages + _PAGES_OF_A_RING for pages in rings) * page
    frames = PYTHON_FRAMES * PYTHON_FRAME.size
    copy = COPY_HEAD.size + COPY_ARGUMENT.size + frames + REGISTER_BYTES[machine] + of.stack_bytes + page
    image = IMAGE_HEAD.size + IMAGE_AUXV.size + PATH_NAMES * NAME_SLOT
    of_a_call = copy + _WORDS + page + ctypes.sizeof(ThreadT)
    return total + cpus * (_RECORDED_CALLS * of_a_call + 2 * image)
