# SPDX-License-Identifier: Apache-2.0
"""What failed calls unmapped or moved before they failed; pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ebpftrace.addresses import IntervalMap, RangeSet
from ebpftrace.callflags import MAP_FIXED, MREMAP_FIXED
from ebpftrace.ledger.events import Event, Remapped, Unmapped
from ebpftrace.model import FailedCall, Interval

_MAX_GAPS = 1000
"""Limit for one call: its arguments may name any range."""


def effects(
    calls: Iterable[FailedCall], mapped: RangeSet, departures: Iterable[tuple[int, Interval]]
) -> list[Event]:
    """Return what failed calls unmapped or moved, judged by what is ``mapped`` some time after them.

    mmap with MAP_FIXED and mremap with MREMAP_FIXED unmap what they replace before their last possible error
    (mm/mmap.c, mm/vma.c, mm/mremap.c); since 6.17 an mremap moves several areas one by one and stops at the
    first that it can't move.  A range that is mapped now was left alone, or a later call mapped it, which has
    a row of its own.  A range that another call unmapped or moved away later (``departures``: time, range)
    was left alone as well.
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


def _effects(call: FailedCall, mapped: RangeSet, left_later: IntervalMap[bool]) -> list[Event]:
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
        target = Interval(max(gap.start + shift, new.start), min(gap.end + shift, new.end))
        for part in mapped.intersection(target) if target.size > 0 else ():
            source = Interval(part.start - shift, part.end - shift)
            events.append(Remapped(source, part, call.at - 2, call.at - 1, may_be_empty=True))
    return events


def _holes(gaps: Iterable[Interval], at: int) -> list[Event]:
    return [Unmapped(gap, at) for gap in gaps]


def _gaps(wanted: Interval, mapped: RangeSet, others: IntervalMap[bool]) -> list[Interval]:
    """Return the parts of ``wanted`` that are neither mapped nor in ``others``."""
    gaps = []
    for gap in islice(mapped.gaps(wanted), _MAX_GAPS):
        at = gap.start
        for start, end, _ in others.overlapping(*gap):
            if at < start:
                gaps.append(Interval(at, start))
            at = end
        if at < gap.end:
            gaps.append(Interval(at, gap.end))
    return gaps
