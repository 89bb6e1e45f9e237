"""The ledger's answer held against what /proc says is mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ebpftrace.ledger.intervals import extend, intersections
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
    """Cut the mappings, no two of which overlap, down to what ``/proc/PID/maps`` shows.

    ``vmas`` are ascending and disjoint.  ``read_at`` is when their reading began: a mapping that came after
    that is kept as it is.  On a running target what was mapped or unmapped between the reading of rows and
    of maps counts as disagreement.
    """
    pieces = sorted((*piece, index) for index, mapping in enumerate(mappings) for piece in mapping.pieces)
    areas = [(vma.start, vma.end, is_special(vma)) for vma in vmas]
    unexplained = sum(end - start for start, end, special in areas if not special)
    left: list[list[Interval]] = [[] for _ in mappings]
    for start, end, index, special in intersections(pieces, areas):
        extend(left[index], start, end)
        if not special:
            unexplained -= end - start
    confirmed = []
    phantom = 0
    for mapping, shown in zip(mappings, map(tuple, left)):
        if shown == mapping.pieces or (mapping.since is not None and mapping.since > read_at):
            confirmed.append(mapping)
            continue
        phantom += mapping.size - sum(piece.size for piece in shown)
        if shown:
            confirmed.append(mapping._replace(pieces=shown))
    return Verified(confirmed, unexplained, phantom)
