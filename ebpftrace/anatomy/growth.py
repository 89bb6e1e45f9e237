# SPDX-License-Identifier: Apache-2.0
"""What changed in an address space between two looks: no diffing of smaps by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.anatomy.areas import Area, Kind, Totals, totals_by_kind


class What(Enum):
    """What happened to an area."""

    APPEARED = "appeared"
    DISAPPEARED = "disappeared"
    GREW = "grew"
    SHRANK = "shrank"
    BECAME = "became"
    """It is another kind of area now: the thread of a stack exited, a stack was taken from the cache."""


class Change(NamedTuple):
    """One area that is not what it was."""

    what: What
    area: Area
    """As it is now; as it was where it has disappeared."""
    was: Optional[Area]
    size: int
    """Difference in bytes of address space."""
    resident: int


@dataclass(frozen=True)
class Growth:
    """The difference between two looks."""

    seconds: float
    kinds: dict[Kind, Totals]
    """Differences of the sums, only kinds that changed."""
    changes: tuple[Change, ...]
    """Largest first; areas where only what is resident changed are not among them."""


def compare(before: Sequence[Area], after: Sequence[Area], seconds: float) -> Growth:
    """What changed from ``before`` to ``after`` (both ascending), ``seconds`` apart.

    An area is the same where its addresses overlap; the differences of all changes add up to the
    difference in size.
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


class Alike(NamedTuple):
    """Changes of the same sort and size."""

    what: What
    kind: Kind
    was: Optional[Kind]
    step: int
    """Bytes that each changed by."""
    perms: str
    number: int
    size: int
    """Bytes that all changed by."""
    resident: int
    first: Change
    same_path: bool
    """All have the path (or, as anonymous memory, none) that ``first`` has."""


def grouped(changes: Iterable[Change]) -> list[Alike]:
    """Alike changes together, most bytes first."""
    groups: dict[tuple[What, Kind, Optional[Kind], int, str], Alike] = {}
    for change in changes:
        was = change.was.kind if change.what is What.BECAME and change.was is not None else None
        key = (change.what, change.area.kind, was, change.size, change.area.perms)
        known = groups.get(key) or Alike(*key, 0, 0, 0, change, True)
        groups[key] = known._replace(
            number=known.number + 1,
            size=known.size + change.size,
            resident=known.resident + change.resident,
            same_path=known.same_path and change.area.path == known.first.area.path,
        )
    return sorted(groups.values(), key=lambda group: (abs(group.size), group.number), reverse=True)
