# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.maps/1``: one reading, one object, one line.

``schema/maps-1.json`` describes it for machines.  Sizes are bytes, times ISO 8601, addresses hexadecimal
strings; bytes of a name that are not UTF-8 are written as ``\\xff``.
"""

from __future__ import annotations

import json
from typing import Any, Optional

from ebpftrace import __version__
from ebpftrace.classify.changes import Change, Growth
from ebpftrace.classify.maps_report import MapsReport
from ebpftrace.classify.model import Area, Totals
from ebpftrace.classify.repeated import Repeated, repeated
from ebpftrace.model import Frame
from ebpftrace.report.json_parts import finding_object, iso_time, target_object
from ebpftrace.text import address, without_surrogates

SCHEMA = "ebpftrace.maps/1"


def render(maps: MapsReport) -> str:
    """The reading as one line of ASCII JSON."""
    return json.dumps(document(maps), allow_nan=False) + "\n"


def document(maps: MapsReport) -> dict[str, Any]:
    """The reading as the object of the contract."""
    target, thread_lists = maps.target, maps.thread_lists
    return {
        "schema": SCHEMA,
        "version": __version__,
        "target": {
            **target_object(target),
            "threads": target.threads,
        },
        "taken_at": iso_time(maps.taken_at),
        "memory": {
            "virt": maps.virt,
            "rss": maps.rss,
            "vmas": maps.vma_count,
            "max_vmas": maps.max_vma_count,
        },
        "books": {
            "state": thread_lists.state.value,
            "why": without_surrogates(thread_lists.why),
            "libc": thread_lists.libc,
            "stack_cache_limit": thread_lists.stack_cache_limit,
        },
        "arenas": maps.arenas,
        "classes": {kind.value: _totals(sums) for kind, sums in maps.kinds.items()},
        "total": _totals(maps.total),
        "areas": [_area(area, maps) for area in maps.areas],
        "repeated": [_repeated(one) for one in repeated(maps.areas)],
        "growth": _growth(maps.growth, maps) if maps.growth is not None else None,
        "findings": [{**finding_object(finding), "stack": None} for finding in maps.findings],
        "notes": [without_surrogates(note) for note in maps.notes],
    }


def _totals(sums: Totals) -> dict[str, int]:
    return {
        "count": sums.number,
        "bytes": sums.size,
        "rss_bytes": sums.resident,
        "swap_bytes": sums.swap,
    }


def _repeated(one: Repeated) -> dict[str, Any]:
    return {"path": without_surrogates(one.path), "files": one.files, **_totals(one.totals)}


def _area(area: Area, maps: MapsReport) -> dict[str, Any]:
    routine = maps.routines.get(area.start_routine)
    return {
        "start": address(area.start),
        "end": address(area.end),
        "class": area.kind.value,
        "bytes": area.size,
        "rss_bytes": area.resident,
        "swap_bytes": area.swap,
        "huge_bytes": area.huge,
        "guard_bytes": area.guard,
        "perms": area.perms,
        "path": without_surrogates(area.path),
        "tid": area.tid,
        "thread": without_surrogates(area.thread) if area.tid is not None else None,
        "start_routine": _routine(area.start_routine, routine),
        "note": area.note,
    }


def _routine(at: int, frame: Optional[Frame]) -> Optional[dict[str, Any]]:
    if not at:
        return None
    function = frame.function if frame is not None else None
    module = frame.module if frame is not None else None
    return {
        "address": address(at),
        "function": without_surrogates(function) if function else None,
        "module": without_surrogates(module) if module else None,
        "offset": frame.offset if frame is not None else None,
    }


def _growth(growth: Growth, maps: MapsReport) -> dict[str, Any]:
    return {
        "seconds": growth.seconds,
        "classes": {kind.value: _totals(sums) for kind, sums in growth.kinds.items()},
        "changes": [_change(change, maps) for change in growth.changes],
    }


def _change(change: Change, maps: MapsReport) -> dict[str, Any]:
    return {
        "what": change.what.value,
        "was": change.was.kind.value if change.was is not None else None,
        "bytes": change.size,
        "rss_bytes": change.resident,
        "area": _area(change.area, maps),
    }
