# SPDX-License-Identifier: Apache-2.0
"""What changed in an address space between two readings, in place of comparing smaps by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.classify.model import Area, Kind, Totals, totals_by_kind


class What(Enum):
    """What happened to an area."""

    APPEARED = "appeared"
    DISAPPEARED = "disappeared"
    GREW = "grew"
    SHRANK = "shrank"
    BECAME = "became"
    """The area has another kind now: the thread of a stack exited, a stack was taken from the cache."""


class Change(NamedTuple):
    """One area that has changed."""

    what: What
    area: Area
    """The area now; if it has disappeared, the area before."""
    was: Optional[Area]
    size: int
    """Difference in bytes of address space."""
    resident: int


@dataclass(frozen=True)
class Growth:
    """The difference between two readings."""

    seconds: float
    kinds: dict[Kind, Totals]
    """Differences of the sums, for the kinds that changed."""
    changes: tuple[Change, ...]
    """Largest first; areas of which only the resident size changed are left out."""


def compare(before: Sequence[Area], after: Sequence[Area], seconds: float) -> Growth:
    """The changes from ``before`` to ``after`` (both ascending), ``seconds`` later.

    Areas whose addresses overlap are the same area; the differences of all changes add up to the difference
    in size.
    """
    changes = [change for change in _changes(before, after) if change is not None]
    changes.sort(key=lambda change: (abs(change.size), abs(change.resident)), reverse=True)
    old, new = totals_by_kind(before), totals_by_kind(after)
    kinds = {kind: new.get(kind, Totals()).minus(old.get(kind, Totals())) for kind in Kind}
    return Growth(seconds, {kind: sums for kind, sums in kinds.items() if any(sums)}, tuple(changes))


def _changes(before: Sequence[Area], after: Sequence[Area]) -> Iterable[Optional[Change]]:
    index = 0
    for area in after:
        while index < len(before) and before[index].end <= area.start:
            yield _gone(before[index])
            index += 1
        if index < len(before) and before[index].start < area.end:
            yield _changed(before[index], area)
            index += 1
        else:
            yield Change(What.APPEARED, area, None, area.size, area.resident)
    for area in before[index:]:
        yield _gone(area)


def _gone(area: Area) -> Change:
    return Change(What.DISAPPEARED, area, None, -area.size, -area.resident)


def _changed(was: Area, now: Area) -> Optional[Change]:
    size, resident = now.size - was.size, now.resident - was.resident
    if was.kind is not now.kind:
        return Change(What.BECAME, now, was, size, resident)
    if not size:
        return None
    return Change(What.GREW if size > 0 else What.SHRANK, now, was, size, resident)


class SimilarChanges(NamedTuple):
    """Changes of the same kind and size."""

    what: What
    kind: Kind
    was: Optional[Kind]
    step: int
    """Bytes by which each changed."""
    perms: str
    number: int
    size: int
    """Bytes by which all together changed."""
    resident: int
    first: Change
    same_path: bool
    """All have the path of ``first``, which is empty for anonymous memory."""


def grouped(changes: Iterable[Change]) -> list[SimilarChanges]:
    """Group similar changes, most bytes first."""
    groups: dict[tuple[What, Kind, Optional[Kind], int, str], SimilarChanges] = {}
    for change in changes:
        was = change.was.kind if change.what is What.BECAME and change.was is not None else None
        key = (change.what, change.area.kind, was, change.size, change.area.perms)
        known = groups.get(key) or SimilarChanges(*key, 0, 0, 0, change, True)
        groups[key] = known._replace(
            number=known.number + 1,
            size=known.size + change.size,
            resident=known.resident + change.resident,
            same_path=known.same_path and change.area.path == known.first.area.path,
        )
    return sorted(groups.values(), key=lambda group: (abs(group.size), group.number), reverse=True)
