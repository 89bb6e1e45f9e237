# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.growth/1``: a line for each interval, and a last one that sums up.

``schema/growth-1.json`` describes both for machines.  Sizes are bytes, times ISO 8601 with offset.
"""

from __future__ import annotations

import json
from typing import Any

from ebpftrace import __version__
from ebpftrace.growth.model import Cause, SiteGrowth, Step, Summary
from ebpftrace.model import Clock
from ebpftrace.report.json_parts import calls_object, iso_time, stack_object, target_object
from ebpftrace.text import without_surrogates

SCHEMA = "ebpftrace.growth/1"
_MOST_THREADS = 100


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
        }
    )


def summary(told: Summary) -> str:
    """The whole window as a line of ASCII JSON."""
    target, whole, calls, losses = told.target, told.whole, told.calls, told.losses
    return _line(
        {
            "schema": SCHEMA,
            "kind": "summary",
            "version": __version__,
            "target": target_object(target),
            "window": {
                "seconds": whole.seconds,
                "ended_by": told.ended_by.value,
                "ended_at": iso_time(told.clock.wall_ns(whole.after.at)),
            },
            "memory": {
                "virt_start": whole.before.virt,
                "virt_end": whole.after.virt,
                "rss_start": whole.before.rss,
                "rss_end": whole.after.rss,
            },
            "calls": calls_object(calls),
            "losses": {"events": losses.events, "mappings": losses.mappings, "threads": losses.threads},
            "growth": [_site(site, whole.seconds) for site in told.sites],
            "unexplained_bytes": whole.unexplained,
            "notes": [without_surrogates(note) for note in told.notes],
            "cost": {"cpu_seconds": told.cost.cpu_seconds} if told.cost is not None else None,
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
            for thread in cause.threads[:_MOST_THREADS]
        ],
        "stack": stack_object(cause.stack),
    }
