# SPDX-License-Identifier: Apache-2.0
"""What calls that failed did all the same; pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ebpftrace.callflags import MAP_FIXED, MREMAP_FIXED
from ebpftrace.covered import Covered
from ebpftrace.ledger.events import Event, Hole, Move
from ebpftrace.ledger.intervals import IntervalMap
from ebpftrace.model import FailedCall, Interval

_MOST_GAPS = 1000
"""Of one call that are looked at: its arguments may be anything."""


def effects(
    calls: Iterable[FailedCall], mapped: Covered, departures: Iterable[tuple[int, Interval]]
) -> list[Event]:
    """Return what calls that failed did all the same, by what is ``mapped`` some time after them.

    mmap with MAP_FIXED and mremap with MREMAP_FIXED unmap what they replace before the last thing can go
    wrong (mm/mmap.c, mm/vma.c, mm/mremap.c); since 6.17 an mremap moves several areas one by one and stops at
    the first that it can't move.  Where something is mapped now, it was left alone, or a later call is told
    of; and so it is with what other calls unmapped or moved away later (``departures``, with their times).
    """
    events: list[Event] = []
    left_later: IntervalMap[bool] = IntervalMap()
    latest = sorted(departures, reverse=True)
    following = 0
    for call in sorted(calls, key=lambda call: call.at, reverse=True):
        while following < len(latest) and latest[following][0] > call.at:
            left_later.fill(*latest[following][1], True, lambda _: False)
            following += 1
        events += _effects(call, mapped, left_later)
    return events


def _effects(call: FailedCall, mapped: Covered, left_later: IntervalMap[bool]) -> list[Event]:
    if call.call == "mmap" and call.flags & MAP_FIXED:
        return _holes(_gaps(Interval(call.start, call.start + call.length), mapped, left_later), call.at)
    if call.call != "mremap" or not call.flags & MREMAP_FIXED or not call.length:
        return []
    new = call.new
    shift = new.start - call.start
    old = Interval(call.start, call.start + call.length)
    events = _holes(_gaps(new, mapped, left_later), call.at)
    for gap in _gaps(old, mapped, left_later):
        events += _holes([gap], call.at)
        there = Interval(max(gap.start + shift, new.start), min(gap.end + shift, new.end))
        for part in mapped.parts(there) if there.size > 0 else ():
            came_from = Interval(part.start - shift, part.end - shift)
            events.append(Move(came_from, part, call.at - 2, call.at - 1, may_be_empty=True))
    return events


def _holes(gaps: Iterable[Interval], at: int) -> list[Event]:
    return [Hole(gap, at) for gap in gaps]


def _gaps(wanted: Interval, mapped: Covered, others: IntervalMap[bool]) -> list[Interval]:
    """Return what of it is neither mapped nor in the others; no more than a real call leaves."""
    gaps = []
    for gap in islice(mapped.gaps(wanted), _MOST_GAPS):
        at = gap.start
        for start, end, _ in others.overlapping(*gap):
            if at < start:
                gaps.append(Interval(at, start))
            at = end
        if at < gap.end:
            gaps.append(Interval(at, gap.end))
    return gaps
