# SPDX-License-Identifier: Apache-2.0
"""The sizes of the BPF maps, and the memory that they take; pure.

The limits of a machine say nothing about its processes: vm.max_map_count is 65,530 by default, a million on
many distributions and 2**31 on some.  So the sizes start from a default and from a multiple of what the
targets have now; entries that do not fit are counted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ebpftrace.capture.layout import (
    CACHE_OWNERS,
    COPY_ARGUMENT,
    COPY_HEAD,
    GIVEN_NUMBERS,
    IMAGE_AUXV,
    IMAGE_HEAD,
    MAX_SPACES,
    NAME_SLOT,
    PATH_NAMES,
    PLACES,
    PYTHON_BYTES,
    REGISTER_BYTES,
    STACK_USERS,
    STEP_BYTES,
    Follow,
    GivenT,
    LibraryT,
    MappingT,
    Probes,
    SiteT,
    Sizes,
    SpaceConfigT,
    SpaceT,
    TaskKeyT,
    TaskT,
    ThreadT,
    TouchedT,
    WalkT,
    ring_pages,
)

_ROWS = 262_144
"""Mappings: twice what two processes with 65,530 areas can have, because partly unmapped ones stay longer."""
_THREADS = 32_768
_SITES = 16_384
_ROWS_PREALLOCATED, _THREADS_PREALLOCATED, _SITES_PREALLOCATED = 49_152, 8192, 8192
"""Smaller, because preallocated entries take memory even if no process ever needs them."""
_MAX_ROWS = 1 << 23
_MAX_ROWS_PREALLOCATED = 1 << 20

_ELEMENT, _BUCKET = 48, 16
"""Bytes of ``struct htab_elem`` before the key, and of ``struct bucket`` (kernel/bpf/hashtab.c)."""
_RECORDED_CALLS = 4
_PAGES_OF_A_RING = 3
_WORDS = 24


@dataclass(frozen=True)
class Needs:
    """What is to be traced, and how."""

    mapped: Sequence[int]
    """Number of areas of each process now."""
    tasks: int
    """Number of tasks of all processes."""
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
    settle_ns: int = 0
    """A followed process is traced from its first thread on; unless this is 0 also once it has lived for so
    many ns, and at once if the traced process itself executed another program."""
    brk_stacks: bool = False
    """Record the stacks of calls that move the break."""
    threads_only: bool = False
    """No system call is traced, so the ledger has no rows."""
    probes: Probes = Probes.AUTO


def sizes(needs: Needs, preallocated: bool) -> Sizes:
    """Return the sizes of the tables for these processes.

    ``preallocated``: the kernel allocates all entries in advance (before Linux 6.1).
    """
    now = sum(needs.mapped)
    if needs.max_mappings is not None:
        rows = needs.max_mappings
    elif preallocated:
        rows = min(max(_ROWS_PREALLOCATED, now), _MAX_ROWS_PREALLOCATED)
    else:
        rows = min(max(_ROWS, 4 * now), _MAX_ROWS)
    # Twice: rows that were unmapped part by part stay until they are swept.
    rows = max(1, min(rows, 2 * needs.most_mapped * max(1, len(needs.mapped))))
    threads = 2 * needs.tasks + (_THREADS_PREALLOCATED if preallocated else max(_THREADS, rows // 8))
    return Sizes(
        mappings=1 if needs.threads_only else rows,
        # Only threads that left a mapping or moved the break are kept.
        exited=max(1, rows // 2) if needs.max_mappings is None else rows,
        threads=min(threads, needs.most_tasks),
        sites=_SITES_PREALLOCATED if preallocated else _SITES,
        stack_bytes=needs.stack_bytes,
        copies_per_second=needs.copies_per_second,
        follow=needs.follow,
        settle_ns=needs.settle_ns,
        brk_stacks=needs.brk_stacks,
    )


def kernel_bytes(of: Sizes, preallocated: bool, cpus: int, page: int, machine: str) -> int:
    """Return the kernel memory of the empty tables, in bytes; the kernel charges within 10 % of that."""
    hashes = (
        (of.mappings, 8, ctypes.sizeof(MappingT)),
        (of.exited, ctypes.sizeof(TaskKeyT), ctypes.sizeof(TaskT)),
        (of.threads, 8, ctypes.sizeof(ThreadT)),
        (of.sites, 8, ctypes.sizeof(SiteT)),
    )
    total = 0
    for entries, key, leaf in hashes:
        total += _BUCKET << (entries - 1).bit_length()
        if preallocated:
            total += (entries + cpus) * (_ELEMENT + key + leaf)
    total += MAX_SPACES * sum(map(ctypes.sizeof, (SpaceT, SpaceConfigT, LibraryT, WalkT)))
    total += 8 * (CACHE_OWNERS + STACK_USERS)
    if of.settle_ns:
        total += GIVEN_NUMBERS * (_ELEMENT + 8 + ctypes.sizeof(GivenT))
    total += PLACES * ctypes.sizeof(TouchedT)
    rings = (of.event_pages, of.copy_pages, of.image_pages)
    total += sum(ring_pages(units, page) + _PAGES_OF_A_RING for units in rings) * page
    copy = COPY_HEAD.size + COPY_ARGUMENT.size + PYTHON_BYTES + REGISTER_BYTES[machine]
    copy += of.stack_bytes + STEP_BYTES
    image = IMAGE_HEAD.size + IMAGE_AUXV.size + PATH_NAMES * NAME_SLOT
    of_a_call = copy + _WORDS + STEP_BYTES + ctypes.sizeof(ThreadT)
    return total + cpus * (_RECORDED_CALLS * of_a_call + 2 * image)
