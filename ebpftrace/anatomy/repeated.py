# SPDX-License-Identifier: Apache-2.0
"""What is mapped again and again under one name: a file that is opened and mapped, and never unmapped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ebpftrace.anatomy.areas import Area, Kind, Totals

MANY = 16
"""Least areas of one name that are told: a library that is loaded has half a dozen."""
_NAMED_BY_PROGRAM = frozenset(
    {Kind.NAMED, Kind.HUGE, Kind.SHARED, Kind.TEXT, Kind.RODATA, Kind.DATA, Kind.FILE, Kind.DEVICE}
)
"""Kinds whose areas have the name of a file or one that the program gave; those of stacks and heaps are
glibc's."""


class Repeated(NamedTuple):
    """All areas of one name."""

    path: str
    """As the kernel prints it; not yet escaped."""
    files: int
    """Different files of that name, such as memfds; 0 for named anonymous memory."""
    totals: Totals
    """A page is resident in each area that it is mapped in, as the kernel counts RSS."""


def repeated(areas: Iterable[Area]) -> list[Repeated]:
    """Names that at least ``MANY`` areas have, most areas first."""
    found: dict[str, tuple[set[int], Totals]] = {}
    for area in areas:
        # What is behind a file's data (.bss) has its name, and is no mapping of it.
        if area.path and area.kind in _NAMED_BY_PROGRAM and not area.note:
            inodes, sums = found.get(area.path) or (set(), Totals())
            inodes.add(area.inode)
            found[area.path] = inodes, sums.plus(area)
    many = [
        Repeated(path, len(inodes - {0}), sums)
        for path, (inodes, sums) in found.items()
        if sums.number >= MANY
    ]
    return sorted(many, key=lambda one: (one.totals.number, one.totals.size), reverse=True)
