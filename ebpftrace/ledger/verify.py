"""The ledger's answer held against what /proc says is mapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from ebpftrace.covered import Covered
from ebpftrace.ledger.space import is_special
from ebpftrace.model import Mapping
from ebpftrace.vmas import Vmas


class Verified(NamedTuple):
    """Mappings that /proc confirms, and how far ledger and /proc disagreed, in bytes."""

    mappings: list[Mapping]
    unexplained_bytes: int
    """/proc maps it, no mapping explains it: shmat, io_uring, lost events.  Special areas do not count."""
    phantom_bytes: int
    """The ledger had it mapped, /proc does not: dropped."""


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
