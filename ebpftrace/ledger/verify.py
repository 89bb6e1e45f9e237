# SPDX-License-Identifier: Apache-2.0
"""The ledger's answer compared with /proc/PID/maps."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Optional

from ebpftrace.addresses import RangeSet
from ebpftrace.callflags import MAP_GROWSDOWN
from ebpftrace.ledger.space import is_special
from ebpftrace.model import SIZE_UNKNOWN, Interval, Mapping
from ebpftrace.vmas import UNSIZED, Vmas


class Verified(NamedTuple):
    """Mappings that /proc confirms, and by how many bytes the ledger and /proc disagreed."""

    mappings: list[Mapping]
    unexplained_bytes: int
    """Mapped according to /proc only: by drivers, or an event was lost.  Special areas do not count."""
    phantom_bytes: int
    """Mapped according to the ledger only; these parts of mappings were dropped."""


def is_sized_by_kernel(mapping: Mapping) -> bool:
    """Say whether the call that made a mapping does not give its size, so that ``as_shown`` is needed.

    Files on hugetlbfs are not recognized.
    """
    prot, flags = mapping.prot or 0, mapping.flags or 0
    return bool(prot & SIZE_UNKNOWN or flags & MAP_GROWSDOWN)


def unsized_starts(vmas: Vmas) -> frozenset[int]:
    """Return where what shmat and io_setup mapped begins."""
    return frozenset(
        start for start, kind in zip(vmas.starts, vmas.kinds) if kind.path and kind.path.startswith(UNSIZED)
    )


def without_ended(mappings: Iterable[Mapping], segments: frozenset[int], vmas: Vmas) -> list[Mapping]:
    """Return the mappings without those of the baseline that shmdt or io_destroy has ended since.

    These calls are given no size, so only of what has a row it is known what they end.  ``segments``:
    ``unsized_starts`` of the baseline; ``vmas``: what is mapped now.
    """
    ended = segments - unsized_starts(vmas)
    return [one for one in mappings if not (one.before_attach and one.start in ended)]


def as_shown(mappings: Iterable[Mapping], vmas: Vmas, page: int) -> list[Mapping]:
    """Return the mappings with their files, and as large as the kernel made them; ``page`` in bytes.

    The arguments of the call do not always give the size: files on hugetlbfs are rounded up to huge pages
    (mm/mmap.c, ksys_mmap_pgoff; no flag shows it), a MAP_GROWSDOWN mapping grows below its start (mm/vma.c,
    expand_downwards), and shmat and io_setup have no size argument.  No mapping grows into another one.
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
    """Return the bytes that only /proc shows as mapped, by the name that they have there, most first."""
    covered = RangeSet(_joined(sorted(piece for mapping in mappings for piece in mapping.pieces)))
    found: Counter[str] = Counter()
    for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        if kind.path and is_special(kind):
            continue
        missing = sum(gap.size for gap in covered.gaps(Interval(start, end)))
        if missing:
            found[kind.path or "[anon]"] += missing
    return found.most_common()


def _joined(pieces: Iterable[Interval]) -> Iterator[tuple[int, int]]:
    """Yield ascending pieces without the parts that an earlier piece covers."""
    reached = 0
    for start, end in pieces:
        if end > reached:
            yield max(start, reached), end
            reached = end


def verify(mappings: Sequence[Mapping], vmas: Vmas, read_at: int) -> Verified:
    """Cut the mappings, which do not overlap, down to what ``/proc/PID/maps`` shows.

    ``read_at`` is when the reading of ``vmas`` began: a mapping made after that is kept as it is.  What a
    running target maps or unmaps between the reading of the rows and of ``vmas`` counts as disagreement.
    """
    plain = RangeSet(
        (start, end)
        for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds)
        if not (kind.path and is_special(kind))
    )
    areas: Optional[RangeSet] = None
    unexplained = plain.size
    confirmed = []
    phantom = 0
    for mapping in mappings:
        pieces = mapping.pieces
        if all(map(plain.contains, pieces)):
            unexplained -= mapping.size
            confirmed.append(mapping)
            continue
        unexplained -= sum(part.size for piece in pieces for part in plain.intersection(piece))
        if mapping.since is not None and mapping.since > read_at:
            confirmed.append(mapping)
            continue
        areas = areas or RangeSet(zip(vmas.starts, vmas.ends))
        shown = tuple(part for piece in pieces for part in areas.intersection(piece))
        phantom += mapping.size - sum(part.size for part in shown)
        if shown:
            confirmed.append(mapping._replace(pieces=shown))
    return Verified(confirmed, unexplained, phantom)
