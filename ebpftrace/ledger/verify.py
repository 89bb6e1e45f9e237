# SPDX-License-Identifier: Apache-2.0
"""The ledger's answer held against what /proc says is mapped."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Optional

from ebpftrace.callflags import MAP_GROWSDOWN
from ebpftrace.covered import Covered
from ebpftrace.ledger.space import is_special
from ebpftrace.model import SIZE_UNKNOWN, Interval, Mapping
from ebpftrace.vmas import Vmas


class Verified(NamedTuple):
    """Mappings that /proc confirms, and how far ledger and /proc disagreed, in bytes."""

    mappings: list[Mapping]
    unexplained_bytes: int
    """/proc maps it, no mapping explains it: drivers, lost events.  Special areas do not count."""
    phantom_bytes: int
    """The ledger had it mapped, /proc does not: dropped."""


def as_shown(mappings: Iterable[Mapping], vmas: Vmas, page: int) -> list[Mapping]:
    """Return the mappings with their files, and as large as the kernel made them; ``page`` in bytes.

    The call does not always say how large that is: what lies on hugetlbfs is rounded up to its pages
    (mm/mmap.c, ksys_mmap_pgoff; the file tells, not a flag), with MAP_GROWSDOWN a mapping grows below its
    start (mm/vma.c, expand_downwards), and of what shmat and io_setup map nobody is told the size.  No
    mapping grows into another one.
    """
    shown: list[Mapping] = []
    reached = 0
    mappings = list(mappings)
    starts = [*(mapping.start for mapping in mappings[1:]), sys.maxsize]
    for mapping, following in zip(mappings, starts):
        first, last = mapping.pieces[0], mapping.pieces[-1]
        at = bisect_right(vmas.starts, first.start) - 1
        if at >= 0 and vmas.ends[at] > first.start:
            kind = vmas.kinds[at]
            if kind.path:
                mapping = mapping._replace(file=kind.path)
            if (mapping.flags or 0) & MAP_GROWSDOWN and not kind.path:
                grown = Interval(max(vmas.starts[at], reached), first.end)
                mapping = mapping._replace(pieces=(grown, *mapping.pieces[1:]))
        if mapping.prot is not None and mapping.prot & SIZE_UNKNOWN:
            whole = at >= 0 and vmas.starts[at] == first.start and len(mapping.pieces) == 1
            last = Interval(first.start, min(vmas.ends[at], following)) if whole else last
            mapping = mapping._replace(pieces=(*mapping.pieces[:-1], last), made=last, prot=None)
        at = bisect_right(vmas.starts, last.end - 1) - 1
        if at >= 0 and vmas.kinds[at].page > page and vmas.ends[at] > last.end:
            huge = vmas.kinds[at].page
            end = min(-(-last.end // huge) * huge, vmas.ends[at], following)
            mapping = mapping._replace(pieces=(*mapping.pieces[:-1], Interval(mapping.pieces[-1].start, end)))
        reached = mapping.end
        shown.append(mapping)
    return shown


def unexplained(mappings: Iterable[Mapping], vmas: Vmas) -> list[tuple[str, int]]:
    """Return what /proc maps and no mapping explains: bytes by its name there, most first."""
    covered = Covered(_joined(sorted(piece for mapping in mappings for piece in mapping.pieces)))
    found: Counter[str] = Counter()
    for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        if kind.path and is_special(kind):
            continue
        missing = sum(gap.size for gap in covered.gaps(Interval(start, end)))
        if missing:
            found[kind.path or "[anon]"] += missing
    return found.most_common()


def _joined(pieces: Iterable[Interval]) -> Iterator[tuple[int, int]]:
    """Yield them without what lies in one that came before."""
    reached = 0
    for start, end in pieces:
        if end > reached:
            yield max(start, reached), end
            reached = end


def verify(mappings: Sequence[Mapping], vmas: Vmas, read_at: int) -> Verified:
    """Cut the mappings, no two of which overlap, down to what ``/proc/PID/maps`` shows.

    ``read_at`` is when the reading of ``vmas`` began: a mapping that came after that is kept as it is.  On a
    running target what was mapped or unmapped between the reading of rows and of maps counts as disagreement.
    """
    plain = Covered(
        (start, end)
        for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds)
        if not (kind.path and is_special(kind))
    )
    areas: Optional[Covered] = None
    unexplained = plain.size
    confirmed = []
    phantom = 0
    for mapping in mappings:
        pieces = mapping.pieces
        if plain.holds(pieces[0]) and (len(pieces) == 1 or all(map(plain.holds, pieces))):  # nearly always
            unexplained -= mapping.size
            confirmed.append(mapping)
            continue
        unexplained -= sum(part.size for piece in pieces for part in plain.parts(piece))
        if mapping.since is not None and mapping.since > read_at:
            confirmed.append(mapping)
            continue
        areas = areas or Covered(zip(vmas.starts, vmas.ends))
        shown = tuple(part for piece in pieces for part in areas.parts(piece))
        phantom += mapping.size - sum(part.size for part in shown)
        if shown:
            confirmed.append(mapping._replace(pieces=shown))
    return Verified(confirmed, unexplained, phantom)
