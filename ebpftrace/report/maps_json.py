# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.maps/1``: one look, one object, one line.

``schema/maps-1.json`` describes it for machines.  Sizes are bytes, times ISO 8601, addresses hexadecimal
strings; bytes of a name that are not UTF-8 stand as ``\\xff``.
"""

from __future__ import annotations

import json
from typing import Any, Optional

from ebpftrace import __version__
from ebpftrace.anatomy.areas import Area, Totals
from ebpftrace.anatomy.growth import Change, Growth
from ebpftrace.anatomy.look import Look
from ebpftrace.anatomy.repeated import Repeated, repeated
from ebpftrace.model import Frame
from ebpftrace.report.json_parts import finding_object, iso_time, target_object
from ebpftrace.text import address, without_surrogates

SCHEMA = "ebpftrace.maps/1"


def render(look: Look) -> str:
    """The look as one line of ASCII JSON."""
    return json.dumps(document(look), allow_nan=False) + "\n"


def document(look: Look) -> dict[str, Any]:
    """The look as the object of the contract."""
    target, books = look.target, look.books
    return {
        "schema": SCHEMA,
        "version": __version__,
        "target": {
            **target_object(target),
            "threads": target.threads,
        },
        "taken_at": iso_time(look.taken_at),
        "memory": {
            "virt": look.virt,
            "rss": look.rss,
            "vmas": look.vma_count,
            "max_vmas": look.max_vma_count,
        },
        "books": {
            "state": books.state.value,
            "why": without_surrogates(books.why),
            "libc": books.libc,
            "stack_cache_limit": books.stack_cache_limit,
        },
        "arenas": look.arenas,
        "classes": {kind.value: _totals(sums) for kind, sums in look.kinds.items()},
        "total": _totals(look.total),
        "areas": [_area(area, look) for area in look.areas],
        "repeated": [_repeated(one) for one in repeated(look.areas)],
        "growth": _growth(look.growth, look) if look.growth is not None else None,
        "findings": [{**finding_object(finding), "stack": None} for finding in look.findings],
        "notes": [without_surrogates(note) for note in look.notes],
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


def _area(area: Area, look: Look) -> dict[str, Any]:
    routine = look.routines.get(area.start_routine)
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


def _growth(growth: Growth, look: Look) -> dict[str, Any]:
    return {
        "seconds": growth.seconds,
        "classes": {kind.value: _totals(sums) for kind, sums in growth.kinds.items()},
        "changes": [_change(change, look) for change in growth.changes],
    }


def _change(change: Change, look: Look) -> dict[str, Any]:
    return {
        "what": change.what.value,
        "was": change.was.kind.value if change.was is not None else None,
        "bytes": change.size,
        "rss_bytes": change.resident,
        "area": _area(change.area, look),
    }
