# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.growth/1``: a line for each interval, and a last one that sums up.

``schema/growth-1.json`` describes both for machines.  Sizes are bytes, times ISO 8601 with offset.
"""

from __future__ import annotations

import json
from typing import Any

from ebpftrace import __version__
from ebpftrace.model import Clock, MallocFree
from ebpftrace.report.json_parts import calls_object, iso_time, stack_object, target_object
from ebpftrace.size_changes.model import Cause, SiteGrowth, Step, Summary
from ebpftrace.size_changes.resident import ResidentSummary, RssCause
from ebpftrace.text import without_surrogates

SCHEMA = "ebpftrace.growth/1"
_MAX_THREADS = 100
_MAX_PLACES = 1000


def step(interval: Step, clock: Clock, pid: int) -> str:
    """One interval of process ``pid`` as a line of ASCII JSON."""
    return _line(
        {
            "schema": SCHEMA,
            "kind": "interval",
            "pid": pid,
            "at": iso_time(clock.wall_ns(interval.after.at)),
            "seconds": interval.seconds,
            "virt": interval.after.virt,
            "rss": interval.after.rss,
            "virt_change": interval.virt,
            "rss_change": interval.rss,
            "causes": None if interval.causes is None else [_cause(cause) for cause in interval.causes],
            "causes_seconds": (interval.after.at - interval.since.at) / 1e9,
            "unexplained_bytes": interval.unexplained,
            "rss_causes": None
            if interval.rss_causes is None
            else [_rss_cause(one) for one in interval.rss_causes],
        }
    )


def summary(totals: Summary) -> str:
    """The whole window as a line of ASCII JSON."""
    target, whole, calls, losses = totals.target, totals.whole, totals.calls, totals.losses
    return _line(
        {
            "schema": SCHEMA,
            "kind": "summary",
            "version": __version__,
            "target": target_object(target),
            "window": {
                "seconds": whole.seconds,
                "ended_by": totals.ended_by.value,
                "ended_at": iso_time(totals.clock.wall_ns(whole.after.at)),
            },
            "memory": {
                "virt_start": whole.before.virt,
                "virt_end": whole.after.virt,
                "rss_start": whole.before.rss,
                "rss_end": whole.after.rss,
            },
            "calls": calls_object(calls),
            "losses": {"events": losses.events, "mappings": losses.mappings, "threads": losses.threads},
            "growth": [_site(site, whole.seconds) for site in totals.sites],
            "unexplained_bytes": whole.unexplained,
            "notes": [without_surrogates(note) for note in totals.notes],
            "resident": None if totals.resident is None else _resident(totals.resident),
            "cost": {"cpu_seconds": totals.cost.cpu_seconds} if totals.cost is not None else None,
        }
    )


def _line(document: dict[str, Any]) -> str:
    return json.dumps(document, allow_nan=False) + "\n"


def _site(site: SiteGrowth, seconds: float) -> dict[str, Any]:
    regular = site.regular
    return {
        **_cause(site.cause),
        "bytes_per_minute": site.cause.size * 60 / seconds if seconds > 0 else None,
        "period_seconds": regular.period if regular is not None else None,
        "step_bytes": regular.step if regular is not None else None,
    }


def _cause(cause: Cause) -> dict[str, Any]:
    return {
        "call": cause.how.value,
        "bytes": cause.size,
        "mappings": cause.mappings,
        "before_attach": cause.before_attach,
        "thread_count": len(cause.threads),
        "threads": [
            {"tid": thread.id.tid, "name": without_surrogates(thread.name), "alive": thread.alive}
            for thread in cause.threads[:_MAX_THREADS]
        ],
        "stack": stack_object(cause.stack),
    }


def _rss_cause(cause: RssCause) -> dict[str, Any]:
    return {
        "bytes": cause.size,
        "thread": without_surrogates(cause.place.thread),
        "stack": stack_object(cause.place.stack),
    }


def _malloc_free(free: MallocFree) -> dict[str, Any]:
    return {
        "arenas": free.arenas,
        "bytes": free.size,
        "trimmable": free.resident,
        "complete": free.is_complete,
    }


def _resident(resident: ResidentSummary) -> dict[str, Any]:
    residence = resident.residence
    return {
        "rss_start": residence.rss_before,
        "rss_end": residence.rss_after,
        "gained": residence.gained,
        "given_back": residence.given_back,
        "no_place": residence.unattributed,
        "fault_period": resident.period,
        "faults": resident.faults,
        "lost_faults": resident.lost,
        "malloc_free": None if resident.malloc_free is None else _malloc_free(resident.malloc_free),
        "kinds": [
            {
                "kind": without_surrogates(kind.kind),
                "rss_start": kind.rss_before,
                "rss_end": kind.rss_after,
                "swap_change": kind.swap_change,
                "gained": kind.gained,
                "given_back": kind.given_back,
                "attributed": kind.attributed,
                "why": kind.why.value if kind.why is not None else None,
            }
            for kind in residence.kinds
        ],
        "place_count": len(residence.places),
        "places": [
            {
                "thread": without_surrogates(resident.shown[place.place].thread),
                "bytes": place.resident,
                "by_kind": [
                    {"kind": without_surrogates(kind), "bytes": part} for kind, part in place.by_kind
                ],
                "touched": place.touched,
                "kept": place.kept,
                "kept_by_third": list(place.thirds),
                "pattern": place.pattern.value,
                "stack": stack_object(resident.shown[place.place].stack),
            }
            for place in residence.places[:_MAX_PLACES]
        ],
    }
