# SPDX-License-Identifier: Apache-2.0
"""A part of ``growth`` as text: which code filled the memory that is resident, and what has no place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from ebpftrace.frames import where
from ebpftrace.report.graphs import Box, WeightedStack, boxes_of, draw, fold
from ebpftrace.report.tables import table, wrapped
from ebpftrace.size_changes.model import Step, Summary
from ebpftrace.size_changes.resident import KindGrowth, Pattern, Place, PlaceGrowth, ResidentSummary, Why
from ebpftrace.text import change, count, escape, plural, shorten, size

_KIB = 1024
_CAUSES_SHOWN = 3
_PLACES_SHOWN = 10
_KINDS_SHOWN = 8
_TITLE_NAMES = 3
_NAME_WIDTH = 16
_KIND_WIDTH = 32
_WHERE_WIDTH = 100
_FEW_KEPT = 0.5
"""Part of what a place touched, below which it is said to give memory back."""
_WORTH_SAYING = 0.1
"""Part of what was gained, from which on a place or a rest gets a sentence."""
_MIN_FREE, _FREE_SHARE = 1 << 20, 0.05
"""Bytes that malloc keeps free, and their share of RSS, from which on they are worth a line."""
_STEADY_BYTES, _STEADY_SHARE = 1 << 20, 0.01
"""RSS is steady where less than both became resident, in bytes and as a share of RSS."""
_WHEN = {
    Pattern.STEADY: "all along",
    Pattern.EARLY: "early",
    Pattern.VARYING: "unevenly",
    Pattern.UNKNOWN: "-",
}
_WHY = {
    Why.FEW: "less than one sampled page fault represents (one of {period})",
    Why.NO_FAULT: "without page faults that were seen at its address: MAP_POPULATE, mlock, memory that "
    "mremap has moved, huge pages that the kernel made later, or threads that touched fewer than {period} "
    "pages each (--sample 1 sees those)",
}


def causes(interval: Step, width_left: int) -> Iterable[str]:
    """Yield a line for each place that filled memory in an interval, at most ``width_left`` cells wide."""
    shown = interval.rss_causes or ()
    for cause in shown[:_CAUSES_SHOWN]:
        start = f"{cause.size // _KIB:+d} RSS {_thread(cause.place)}: "
        yield start + where(cause.place.stack, max(width_left - cell_len(start), 0))
    rest = shown[_CAUSES_SHOWN:]
    if rest:
        yield f"{sum(cause.size for cause in rest) // _KIB:+d} RSS in {plural(len(rest), 'more place')}"


def section(summary: ResidentSummary, width: int) -> list[str]:
    """The whole window."""
    residence = summary.residence
    gained = f"{size(residence.gained)} became resident"
    is_steady = residence.gained < min(_STEADY_BYTES, _STEADY_SHARE * residence.rss_before)
    places = _worth_showing(summary)
    is_little = not places and not _without_faults(residence.kinds)
    if is_steady:
        gained += ", less than 1 % of RSS: it is steady"
    elif is_little and residence.gained:
        gained += f", {_WHY[Why.FEW].format(period=count(summary.period))}"
    elif residence.gained:
        share = 100 * (residence.gained - residence.unattributed) // residence.gained
        gained += f", {share} % of it in places that are known"
    if residence.given_back:
        gained += f"; {size(residence.given_back)} was given back or swapped out"
    lines = wrapped(gained, first="RSS by smaps: ", width=width)
    if places:
        header = ">BYTES|>TOUCHED|>KEPT|WHEN|THREAD|IN|WHERE"
        rows = [_cells(place, summary) for place in places[:_PLACES_SHOWN]]
        lines += table(header, rows, indent=3, width=width, optional=("TOUCHED", "WHEN", "IN"))
        rest = places[_PLACES_SHOWN:]
        if rest:
            total = change(0, sum(place.resident for place in rest))
            lines.append(f"   and {plural(len(rest), 'more place')}, {total}")
        lines += _advice(places[0], summary, width)
    kinds = [] if is_steady or is_little else _kinds(summary, width)
    lines += ["", *kinds] if kinds else []
    lines += _malloc_free(summary, width)
    if summary.lost:
        lost = f"{plural(summary.lost, 'sampled page fault')} could not be recorded: shares may be wrong"
        lines += wrapped(lost, first="LOST     ", width=width)
    return lines


def folded(summaries: Iterable[Summary]) -> str:
    """Folded stacks by the bytes that became resident, largest first."""
    return fold(_stacks_of(summaries))


def flamegraph(summaries: Sequence[Summary]) -> str:
    """The same as a page."""
    stacks = [WeightedStack((Box("all"), *one.boxes), one.weight) for one in _stacks_of(summaries)]
    names = ", ".join(f"{escape(one.target.comm)} (PID {one.target.pid})" for one in summaries[:_TITLE_NAMES])
    return draw(f"Memory filled by {names}", "all", "became resident", "filled", stacks)


def _stacks_of(summaries: Iterable[Summary]) -> Iterable[WeightedStack]:
    """The stacks that filled memory, from the process and the thread on; also what has no place."""
    for summary in summaries:
        resident = summary.resident
        if resident is None:
            continue
        process = Box(escape(summary.target.comm) or str(summary.target.pid))
        for place in resident.residence.places:
            shown = resident.shown[place.place]
            if place.resident:
                boxes = (process, Box(_thread(shown)), *boxes_of(shown.stack))
                yield WeightedStack(boxes, place.resident)
        if resident.residence.unattributed:
            yield WeightedStack((process, Box("[no place]")), resident.residence.unattributed)


def _worth_showing(summary: ResidentSummary) -> list[PlaceGrowth]:
    """Places that hold something, and those that gave back more than a little."""
    least = summary.residence.gained * _WORTH_SAYING
    return [
        place
        for place in summary.residence.places
        if place.resident or (place.kept < place.touched * _FEW_KEPT and place.touched > least)
    ]


def _without_faults(kinds: Iterable[KindGrowth]) -> bool:
    """Whether memory was filled that is too much to have been overlooked by sampling."""
    return any(kind.gained > kind.attributed and kind.why is not Why.FEW for kind in kinds)


def _cells(place: PlaceGrowth, summary: ResidentSummary) -> list[str]:
    shown = summary.shown[place.place]
    return [
        change(0, place.resident),
        size(place.touched),
        f"{100 * place.kept // place.touched} %" if place.touched else "-",
        _WHEN[place.pattern],
        _thread(shown),
        _kind(place.by_kind[0][0]) if place.by_kind else "-",
        where(shown.stack, _WHERE_WIDTH),
    ]


def _thread(place: Place) -> str:
    return shorten(escape(place.thread), _NAME_WIDTH) or "?"


def _kind(kind: str) -> str:
    return shorten(escape(kind), _KIND_WIDTH)


def _advice(place: PlaceGrowth, summary: ResidentSummary, width: int) -> list[str]:
    """Explain whether the first place may leak, and what sampled faults cannot show."""
    if place.resident < summary.residence.gained * _WORTH_SAYING or not place.touched:
        return []
    name = where(summary.shown[place.place].stack, _WHERE_WIDTH).split(" < ")[0]
    if place.kept < place.touched * _FEW_KEPT:
        said = "gives most of what it touches back: a pool, or blocks that are used again"
    elif place.pattern is Pattern.STEADY:
        said = "filled memory all along and keeps it: a leak, or a cache that is not full yet"
    elif place.pattern is Pattern.EARLY:
        said = "filled memory early and keeps it: a cache or a pool that is full, rather than a leak"
    else:
        return []
    tools = "Which blocks of malloc are not freed, heaptrack or LeakSanitizer say"
    return wrapped(f"{name} {said}.  {tools}.", first="   ", width=width)


def _kinds(summary: ResidentSummary, width: int) -> list[str]:
    kinds = [kind for kind in summary.residence.kinds if kind.gained or kind.given_back or kind.swap_change]
    header = ">RSS|>GAINED|>GIVEN BACK|>SWAP|>NO PLACE|KIND OF MEMORY"
    rows = [_kind_cells(kind) for kind in kinds[:_KINDS_SHOWN]]
    lines = table(header, rows, indent=3, width=width, optional=("SWAP", "RSS")) if rows else []
    rest = kinds[_KINDS_SHOWN:]
    if rest:
        net = change(0, sum(kind.gained - kind.given_back for kind in rest))
        lines.append(f"   and {plural(len(rest), 'more mapping')}, {net}")
    for why in Why:
        missing = sum(kind.gained - kind.attributed for kind in kinds if kind.why is why)
        if missing:
            line = f"{size(missing)} {_WHY[why].format(period=count(summary.period))}"
            lines += wrapped(line, first="   no place: ", width=width)
    return lines


def _malloc_free(summary: ResidentSummary, width: int) -> list[str]:
    """What malloc could give back, where it is more than a little."""
    free = summary.malloc_free
    if free is None or free.size < max(_MIN_FREE, _FREE_SHARE * summary.residence.rss_after):
        return []
    least = "" if free.is_complete else "at least "
    said = f"keeps {least}{size(free.size)} free in {plural(free.arenas, 'arena')}; malloc_trim(0) can give "
    said += f"{size(free.resident)} of it back, and MALLOC_ARENA_MAX limits the number of arenas"
    return wrapped(said, first="malloc   ", width=width)


def _kind_cells(kind: KindGrowth) -> list[str]:
    return [
        size(kind.rss_after),
        change(0, kind.gained),
        change(kind.given_back, 0) if kind.given_back else "-",
        change(0, kind.swap_change) if kind.swap_change else "-",
        size(kind.gained - kind.attributed) if kind.gained > kind.attributed else "-",
        _kind(kind.kind),
    ]
