# SPDX-License-Identifier: Apache-2.0
"""Names that many areas have, such as a file that is mapped again and again and never unmapped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ebpftrace.classify.model import Area, Kind, Totals

MANY = 16
"""Number of areas from which on a name is reported; a loaded library has half a dozen."""
_NAMED_BY_PROGRAM = frozenset(
    {Kind.NAMED, Kind.HUGE, Kind.SHARED, Kind.TEXT, Kind.RODATA, Kind.DATA, Kind.FILE, Kind.DEVICE}
)
"""Kinds whose areas have the name of a file or one that the program chose; the names of stacks and heaps are
glibc's."""


class Repeated(NamedTuple):
    """All areas of one name."""

    path: str
    """The name as the kernel prints it; not yet escaped."""
    files: int
    """Number of different files with that name, such as memfds; 0 for named anonymous memory."""
    totals: Totals
    """A page counts as resident in each area that maps it, as in the kernel's RSS."""


def repeated(areas: Iterable[Area]) -> list[Repeated]:
    """Names that at least ``MANY`` areas have, most areas first."""
    found: dict[str, tuple[set[int], Totals]] = {}
    for area in areas:
        # The area after a file's data (.bss) has its name too, but is no mapping of the file.
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
