# SPDX-License-Identifier: Apache-2.0
"""Which code filled the memory that is resident now: what smaps gained, split by page faults that were seen.

smaps says exactly how much of each mapping is resident.  One of so many page faults was sampled, each
with its address and its call stack: they say in which shares, never how much.  So the parts of all places and
what is not attributed add up to what smaps gained, and no place gets more than that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import NamedTuple, Optional

from ebpftrace.model import MallocFree, Stack

_FAULT_AROUND = 65536
"""Bytes of a file that one fault may map (mm/memory.c, fault_around_pages)."""
_CERTAIN = 3.0
"""Standard deviations within which the number of faults agrees with the gain in smaps."""
_STEADY_SHARE = 0.15
"""Least share of the resident memory that each third of a steady growth has touched."""
_EARLY_SHARE = 0.05
"""Greatest share that the last third has touched of memory that was filled once and kept."""
_MIN_FAULTS = 12
"""With fewer sampled faults nothing is said about their times."""


class Extent(NamedTuple):
    """A mapping as smaps shows it at one moment; bytes."""

    start: int
    end: int
    rss: int
    swap: int
    kind: str
    """Its kind, such as ``heap``; mappings of one kind are added up."""
    is_file: bool = False
    """A fault maps several pages of a file at once."""


class Touch(NamedTuple):
    """A sampled page fault whose page is resident at the end."""

    address: int
    at: int
    """ns of CLOCK_MONOTONIC."""
    faults: int
    """Number of faults that it represents."""
    place: Hashable
    """The thread and the place in the program."""
    is_huge: bool = False
    """Its page is part of a huge page at the end."""


class Why(Enum):
    """Why a part of the gain has no place."""

    FEW = "few"
    """It is less than one sampled fault represents."""
    NO_FAULT = "no-fault"
    """It became resident without page faults of a traced thread."""


class Pattern(Enum):
    """When the resident memory was touched."""

    STEADY = "steady"
    """In each third of the window."""
    EARLY = "early"
    """Not in the last third: it was filled once and kept."""
    VARYING = "varying"
    UNKNOWN = "unknown"
    """Too few faults were sampled."""


class Region(NamedTuple):
    """Overlapping mappings of two moments, added up."""

    start: int
    end: int
    kind: str
    is_file: bool
    rss_before: int
    rss_after: int
    swap_before: int
    swap_after: int

    @property
    def change(self) -> int:
        """Change of RSS in bytes."""
        return self.rss_after - self.rss_before


@dataclass(frozen=True)
class KindGrowth:
    """All mappings of one kind; bytes."""

    kind: str
    rss_before: int
    rss_after: int
    swap_change: int
    gained: int
    """Growth of the mappings that grew."""
    attributed: int
    """The part of it that has a place."""
    why: Optional[Why]
    """Why the rest has none; None if there is no rest."""

    @property
    def given_back(self) -> int:
        """Decrease of the mappings that shrank."""
        return self.gained - (self.rss_after - self.rss_before)


@dataclass(frozen=True)
class PlaceGrowth:
    """The memory that one place filled; bytes."""

    place: Hashable
    resident: int
    """Its part of the gain in smaps."""
    by_kind: tuple[tuple[str, int], ...]
    """The same, largest first."""
    touched: int
    """Everything that it touched in the window according to the faults, resident at the end or not."""
    kept: int
    """The part of ``touched`` that is resident at the end."""
    thirds: tuple[int, int, int]
    """The parts of ``kept`` that were touched in each third of the window."""
    pattern: Pattern


class Place(NamedTuple):
    """Who and where, as a report shows it."""

    thread: str
    """Name of the threads."""
    stack: Stack
    """Of most of its faults."""


class RssCause(NamedTuple):
    """What one place filled in an interval."""

    place: Place
    size: int
    """Bytes, its part of what RSS gained."""


@dataclass(frozen=True)
class Residence:
    """Resident memory over a window; bytes."""

    rss_before: int
    rss_after: int
    """Sums over smaps."""
    kinds: tuple[KindGrowth, ...]
    """Largest gain first."""
    places: tuple[PlaceGrowth, ...]
    """Largest first; those that kept nothing too."""

    @property
    def gained(self) -> int:
        """By the mappings that grew."""
        return sum(kind.gained for kind in self.kinds)

    @property
    def given_back(self) -> int:
        """By the mappings that shrank."""
        return sum(kind.given_back for kind in self.kinds)

    @property
    def unattributed(self) -> int:
        """Of what was gained, what has no place."""
        return self.gained - sum(place.resident for place in self.places)


def regions(before: Sequence[Extent], after: Sequence[Extent]) -> list[Region]:
    """Take together what overlaps of two readings, each ascending and disjoint; the sums stay the same."""
    found: list[Region] = []
    merged = sorted(
        [(one, False) for one in before] + [(one, True) for one in after], key=lambda pair: pair[0][:2]
    )
    group: list[tuple[Extent, bool]] = []
    end = 0
    for extent, is_after in merged:
        if group and extent.start >= end:
            found.append(_region(group))
            group = []
        end = max(end, extent.end) if group else extent.end
        group.append((extent, is_after))
    if group:
        found.append(_region(group))
    return found


def _region(group: Sequence[tuple[Extent, bool]]) -> Region:
    olds = [extent for extent, is_after in group if not is_after]
    news = [extent for extent, is_after in group if is_after]
    shown = max(news or olds, key=lambda extent: extent.rss)
    return Region(
        start=min(extent.start for extent, _ in group),
        end=max(extent.end for extent, _ in group),
        kind=shown.kind,
        is_file=shown.is_file,
        rss_before=sum(extent.rss for extent in olds),
        rss_after=sum(extent.rss for extent in news),
        swap_before=sum(extent.swap for extent in olds),
        swap_after=sum(extent.swap for extent in news),
    )


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Split a whole number by weights, of which one is positive at least: the parts add up to it."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_rest = sorted(range(len(weights)), key=lambda index: -(total * weights[index] % whole))
    for index in by_rest[: total - sum(parts)]:
        parts[index] += 1
    return parts


def shares(gained: int, touches: Sequence[Touch], page: int, huge_page: int) -> list[tuple[Hashable, int]]:
    """Split what RSS gained in an interval by its touches, largest first: never more than was gained."""
    sizes = _sizes(touches, page, huge_page)
    attributed, _ = _attributable(max(gained, 0), list(zip(touches, sizes)), False, page, 1)
    weights: Counter[Hashable] = Counter()
    for touch, size in zip(touches, sizes):
        weights[touch.place] += size
    if not attributed:
        return []
    parts = zip(weights, split(attributed, list(weights.values())))
    return sorted(((place, part) for place, part in parts if part), key=lambda pair: -pair[1])


def attribute(
    before: Sequence[Extent],
    after: Sequence[Extent],
    touches: Sequence[Touch],
    touched: Counter[Hashable],
    window: tuple[int, int],
    page: int,
    huge_page: int,
    period: int,
) -> Residence:
    """Split what smaps gained by the touches whose pages are resident at the end.

    ``touched``: faults of each place in the ``window`` (two times, ns), also of pages that are gone; ``page``
    and ``huge_page`` in bytes; one of ``period`` faults of a thread was sampled.
    """
    found = regions(before, after)
    sizes = _sizes(touches, page, huge_page)
    inside = _by_kind(found, touches)
    kinds = []
    parts: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for kind, of in _grouped(found).items():
        gained = sum(region.change for region in of if region.change > 0)
        numbers = inside.get(kind, [])
        attributed, why = _attributable(
            gained,
            [(touches[n], sizes[n]) for n in numbers],
            any(region.is_file for region in of),
            page,
            period,
        )
        weights: Counter[Hashable] = Counter()
        for number in numbers:
            weights[touches[number].place] += sizes[number]
        if attributed:
            for place, part in zip(weights, split(attributed, list(weights.values()))):
                parts[place][kind] += part
        kinds.append(
            KindGrowth(
                kind=kind,
                rss_before=sum(region.rss_before for region in of),
                rss_after=sum(region.rss_after for region in of),
                swap_change=sum(region.swap_after - region.swap_before for region in of),
                gained=gained,
                attributed=attributed,
                why=why,
            )
        )
    kept: dict[Hashable, list[int]] = defaultdict(list)
    for number, touch in enumerate(touches):
        kept[touch.place].append(number)
    places = [
        _place(
            place, parts[place], touched[place] * page, [(touches[n], sizes[n]) for n in kept[place]], window
        )
        for place in dict.fromkeys([*parts, *kept, *touched])
    ]
    return Residence(
        rss_before=sum(extent.rss for extent in before),
        rss_after=sum(extent.rss for extent in after),
        kinds=tuple(sorted(kinds, key=lambda one: (-one.gained, one.kind))),
        places=tuple(sorted(places, key=lambda one: (-one.resident, -one.touched))),
    )


def _sizes(touches: Sequence[Touch], page: int, huge_page: int) -> list[int]:
    """Return the bytes that each touch represents.

    A huge page that one fault brought has one touch at most; where several lie in one, it was made later of
    small pages, each with a fault of its own (Documentation/admin-guide/mm/transhuge.rst, khugepaged).
    """
    similar = Counter(touch.address // huge_page for touch in touches if touch.is_huge)
    return [
        touch.faults * (huge_page if touch.is_huge and similar[touch.address // huge_page] == 1 else page)
        for touch in touches
    ]


def _by_kind(found: Sequence[Region], touches: Sequence[Touch]) -> dict[str, list[int]]:
    """The numbers of the touches in regions that grew, by the kind of the region."""
    starts = [region.start for region in found]
    inside: dict[str, list[int]] = defaultdict(list)
    for number, touch in enumerate(touches):
        index = bisect_right(starts, touch.address) - 1
        if index >= 0 and touch.address < found[index].end and found[index].change > 0:
            inside[found[index].kind].append(number)
    return inside


def _grouped(found: Iterable[Region]) -> dict[str, list[Region]]:
    groups: dict[str, list[Region]] = defaultdict(list)
    for region in found:
        groups[region.kind].append(region)
    return groups


def _attributable(
    gained: int, touches: Sequence[tuple[Touch, int]], is_file: bool, page: int, period: int
) -> tuple[int, Optional[Why]]:
    """How much of what was gained the touches account for, and why not for the rest."""
    if not gained:
        return 0, None
    around = max(1, _FAULT_AROUND // page) if is_file else 1
    if not touches:
        return 0, Why.FEW if gained <= _CERTAIN * period * page * around else Why.NO_FAULT
    seen = sum(size for _, size in touches) * around
    # Faults are sampled at the end of a period, so their number is uncertain by the periods begun.
    noise = _CERTAIN * sqrt(sum(size * size for _, size in touches)) * around
    if gained <= seen + noise:
        return gained, None
    return min(gained, seen), Why.NO_FAULT


def _place(
    place: Hashable,
    parts: Counter[str],
    touched: int,
    kept: Sequence[tuple[Touch, int]],
    window: tuple[int, int],
) -> PlaceGrowth:
    thirds = [0, 0, 0]
    begin, end = window
    for touch, size in kept:
        third = 3 * (touch.at - begin) // max(end - begin, 1)
        thirds[min(max(third, 0), 2)] += size
    whole = sum(thirds)
    return PlaceGrowth(
        place=place,
        resident=sum(parts.values()),
        by_kind=tuple((kind, part) for kind, part in parts.most_common() if part),
        touched=max(touched, whole),
        kept=whole,
        thirds=(thirds[0], thirds[1], thirds[2]),
        pattern=_pattern(thirds, len(kept)),
    )


def _pattern(thirds: Sequence[int], number: int) -> Pattern:
    whole = sum(thirds)
    if number < _MIN_FAULTS or not whole:
        return Pattern.UNKNOWN
    if min(thirds) >= _STEADY_SHARE * whole:
        return Pattern.STEADY
    if thirds[2] <= _EARLY_SHARE * whole:
        return Pattern.EARLY
    return Pattern.VARYING


@dataclass(frozen=True)
class ResidentSummary:
    """Resident memory over the window of a trace."""

    residence: Residence
    shown: Mapping[Hashable, Place]
    """What the places are."""
    period: int
    """One of so many faults of a thread was sampled."""
    faults: int
    """The number of sampled faults."""
    lost: int
    """That should have been."""
    malloc_free: Optional[MallocFree] = None
    """At the end; None where it could not be read: another allocator, or the process has ended."""
