# SPDX-License-Identifier: Apache-2.0
"""Divides one reading of an address space into areas of one kind each; every byte is in exactly one area."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

from ebpftrace.classify.known_ranges import MAX_GUARD, KnownRange, known_ranges
from ebpftrace.classify.model import Area, Kind, Reading
from ebpftrace.model import Vma
from ebpftrace.units import SMALLEST_PAGE
from ebpftrace.vmas import HEAP

_VSYSCALL = "[vsyscall]"
_KERNEL_NAMES = re.compile(r"\[(vdso|vvar|vvar_vclock|vectors|sigpage|uprobes|timens_vvar)\]$")
_SHARED_PATHS = re.compile(r"/dev/shm/|/SYSV[0-9a-f]{8}\b|/memfd:|/dev/zero( \(deleted\))?$|/drm mm object")
_NO_RANGE = -1
_HUGE_PATH = "/anon_hugepage"
_DEVICE_PATHS = re.compile(r"/dev/|anon_inode:|socket:|/\[aio\]|\[(?!anon|heap|stack|vdso|vvar)")


def classify(reading: Reading) -> tuple[list[Area], list[str]]:
    """All areas, ascending, and notes on stacks and threads that could not be matched.

    The sizes add up to the VIRT (VmSize) of the process: the vsyscall page, which ``maps`` lists although it
    is in no address space, is left out.  Areas in one VMA get parts of its RSS and swap by their size.
    """
    ranges, notes = known_ranges(reading)
    vmas = [vma for vma in reading.vmas if vma.path != _VSYSCALL]
    images = {(vma.device, vma.inode) for vma in vmas if vma.inode and "x" in vma.perms}
    areas: list[Area] = []
    open_range = _NO_RANGE
    for piece in _cut(vmas, ranges):
        if piece.known is None:
            area = _plain(piece, images, areas[-1] if areas else None)
            if area.kind is Kind.STACK_SHAPED:
                areas.pop()
            areas.append(area)
        elif open_range == piece.known_index:
            areas[-1] = _joined(areas[-1], piece)
        else:
            areas.append(_known(piece, piece.known))
        open_range = piece.known_index
    return areas, notes


class _Piece(NamedTuple):
    """The part of a VMA that is inside one known range, or outside all of them."""

    start: int
    end: int
    vma: Vma
    known: Optional[KnownRange]
    known_index: int

    def share(self, figure: Optional[int]) -> int:
        """The part of a figure of the VMA, in whole pages; the parts of all pieces add up to the whole."""
        if not figure or (self.start == self.vma.start and self.end == self.vma.end):
            return figure or 0
        return self._up_to(self.end, figure) - self._up_to(self.start, figure)

    def _up_to(self, address: int, figure: int) -> int:
        if address == self.vma.end:
            return figure
        part = figure * (address - self.vma.start) // self.vma.size
        return part - part % SMALLEST_PAGE

    @property
    def guard(self) -> int:
        return self.end - self.start if self.vma.guard else 0


def _cut(vmas: Sequence[Vma], ranges: Sequence[KnownRange]) -> Iterator[_Piece]:
    index = 0
    for vma in vmas:
        at = vma.start
        while at < vma.end:
            while index < len(ranges) and ranges[index].end <= at:
                index += 1
            if index == len(ranges) or ranges[index].start >= vma.end:
                yield _Piece(at, vma.end, vma, None, _NO_RANGE)
                break
            known = ranges[index]
            if known.start > at:
                yield _Piece(at, known.start, vma, None, _NO_RANGE)
                at = known.start
            end = min(known.end, vma.end)
            yield _Piece(at, end, vma, known, index)
            at = end


def _area(piece: _Piece, kind: Kind) -> Area:
    vma = piece.vma
    return Area(
        piece.start, piece.end, kind, piece.end - piece.start,
        piece.share(vma.rss), piece.share(vma.swap), piece.share(vma.huge), vma.perms, vma.path,
        inode=vma.inode,
    )  # fmt: skip


def _known(piece: _Piece, known: KnownRange) -> Area:
    return _area(piece, known.kind)._replace(
        guard=piece.guard,
        tid=known.tid,
        thread=known.thread,
        start_routine=known.start_routine,
        note=known.note,
    )


def _joined(area: Area, piece: _Piece) -> Area:
    """Extend an area by a part of the next VMA; its permissions are those of the accessible part."""
    only_guard = area.guard == area.size
    return area._replace(
        end=piece.end,
        size=area.size + piece.end - piece.start,
        rss=area.rss + piece.share(piece.vma.rss),
        swap=area.swap + piece.share(piece.vma.swap),
        huge=area.huge + piece.share(piece.vma.huge),
        guard=area.guard + (piece.guard if only_guard else 0),
        perms=piece.vma.perms if only_guard else area.perms,
        path=area.path or piece.vma.path,
    )


def _plain(piece: _Piece, images: set[tuple[str, int]], below: Optional[Area]) -> Area:
    """Find the kind of a piece by its own attributes and those of the area directly below."""
    vma = piece.vma
    kind = _kind(vma, piece.end - piece.start, images)
    area = _area(piece, kind)
    if kind is not Kind.ANONYMOUS or below is None or below.end != piece.start:
        return area
    if below.kind is Kind.DATA and "w" in below.perms and not below.note:
        # ld.so maps the part of a data segment that is not in the file (.bss) directly after it.
        return area._replace(kind=Kind.DATA, path=below.path, note="bss")
    if below.kind is Kind.GUARD and not below.path and "w" in vma.perms:
        return area._replace(
            kind=Kind.STACK_SHAPED,
            start=below.start,
            size=below.size + area.size,
            rss=below.rss + area.rss,
            swap=below.swap + area.swap,
            guard=below.size,
            note="a guard below it",
        )
    return area


def _kind(vma: Vma, size: int, images: set[tuple[str, int]]) -> Kind:
    path, perms = vma.path, vma.perms
    if vma.huge or path.startswith(_HUGE_PATH):
        return Kind.HUGE
    if path == HEAP:
        return Kind.HEAP
    if path == "[stack]":
        return Kind.MAIN_STACK
    if _KERNEL_NAMES.match(path):
        return Kind.KERNEL
    if path.startswith("[anon_shmem:") or _SHARED_PATHS.match(path):
        return Kind.SHARED
    if vma.guard:
        return Kind.GUARD if size <= MAX_GUARD or vma.inode else Kind.RESERVED
    if vma.is_anonymous:
        if "x" in perms:
            return Kind.JIT
        return Kind.NAMED if path else Kind.ANONYMOUS
    if _DEVICE_PATHS.match(path):
        return Kind.DEVICE
    return _file_kind(vma, images)


def _file_kind(vma: Vma, images: set[tuple[str, int]]) -> Kind:
    if not vma.inode:
        return Kind.SHARED if vma.perms.endswith("s") else Kind.ANONYMOUS
    if "x" in vma.perms:
        return Kind.TEXT
    if (vma.device, vma.inode) not in images:
        return Kind.FILE
    return Kind.DATA if "w" in vma.perms else Kind.RODATA
