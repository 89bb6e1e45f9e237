"""The ledger's answer held against what /proc says is mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ebpftrace.ledger.intervals import IntervalMap
from ebpftrace.ledger.space import is_special
from ebpftrace.model import Interval, Mapping, Vma


class Verified(NamedTuple):
    """Mappings that /proc confirms, and how far ledger and /proc disagreed, in bytes."""

    mappings: list[Mapping]
    unexplained_bytes: int
    """/proc maps it, no mapping explains it: shmat, io_uring, lost events.  Special areas do not count."""
    phantom_bytes: int
    """The ledger had it mapped, /proc does not: dropped."""


def verify(mappings: Sequence[Mapping], vmas: Sequence[Vma], read_at: int) -> Verified:
    """Cut the mappings down to what ``/proc/PID/maps`` shows.

    ``read_at`` is when its reading began: a mapping that came after that is kept as it is.  On a running
    target what was mapped or unmapped between the reading of rows and of maps counts as disagreement.
    """
    mapped: IntervalMap[Vma] = IntervalMap()
    for vma in vmas:
        mapped.fill(vma.start, vma.end, vma, _never)
    confirmed = []
    phantom = 0
    for mapping in mappings:
        newer = mapping.since is not None and mapping.since > read_at
        left = list(mapping.pieces) if newer else _confirmed_pieces(mapping, mapped)
        phantom += mapping.size - sum(piece.size for piece in left)
        if left:
            confirmed.append(mapping._replace(pieces=tuple(left)))
    for mapping in confirmed:
        for piece in mapping.pieces:
            mapped.cut(*piece, _always)
    unexplained = sum(end - start for start, end, vma in mapped if not is_special(vma))
    return Verified(confirmed, unexplained, phantom)


def _confirmed_pieces(mapping: Mapping, mapped: IntervalMap[Vma]) -> list[Interval]:
    """Return the parts of the mapping that are mapped, joined across areas that only mprotect split."""
    pieces: list[Interval] = []
    for piece in mapping.pieces:
        for start, end, _ in mapped.overlapping(*piece):
            if pieces and pieces[-1].end == start:
                pieces[-1] = Interval(pieces[-1].start, end)
            else:
                pieces.append(Interval(start, end))
    return pieces


def _never(_: Vma) -> bool:
    return False


def _always(_: Vma) -> bool:
    return True
