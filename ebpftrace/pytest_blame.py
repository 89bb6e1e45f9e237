# SPDX-License-Identifier: Apache-2.0
"""Which test or fixture left which threads unjoined: the pure part of the pytest plugin.

One trace serves a whole session and costs the tests nothing each.  Each process of pytest notes when its
tests and fixtures ran, and every thread of the report is attributed to the test or fixture that ran when the
thread was started.  A process that a test started is attributed to that test as a whole, by the time of its
first thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

from ebpftrace.model import Finding, Orphan, Report, Verdict

UNJOINED = (Verdict.NEVER_JOINED, Verdict.NOT_JOINED_YET, Verdict.JOINED_LATER)
"""Findings of threads that had exited, and were neither joined nor detached when the report was made."""
_BLAMED = (*UNJOINED, Verdict.ABANDONED_STACK)


class Span(NamedTuple):
    """When something ran in a process of pytest, in nanoseconds since the epoch."""

    begin: int
    end: int
    place: str
    """The id of a test; or such as ``tests/test_db.py::fixture server (module scope)``."""
    is_test: bool


@dataclass(frozen=True)
class Terms:
    """What a test may leave."""

    limit: Optional[int] = 0
    """None: any number."""
    exclude: tuple[str, ...] = ()
    """Patterns as of suppressions, without the type."""


NO_TERMS = Terms()


@dataclass(frozen=True)
class Left:
    """Threads of one finding that one place left unjoined."""

    finding: Finding
    """Only the threads of this place are in it."""
    process: Report
    """The process that they were in."""
    in_child: bool
    """It is no process of pytest, but one that a test started."""


def blame(reports: Iterable[Report], spans: Mapping[int, Sequence[Span]]) -> dict[str, list[Left]]:
    """Attribute unjoined threads to places; ``spans`` are those of each process of pytest, by PID."""
    by_pid = {report.target.pid: report for report in reports}
    found: dict[str, list[Left]] = defaultdict(list)
    for report in by_pid.values():
        in_child = report.target.pid not in spans
        started_by = _started_by(report, by_pid, spans) if in_child else ""
        for finding in report.findings:
            if finding.verdict not in _BLAMED or not (finding.leak or finding.verdict in UNJOINED):
                continue
            groups: dict[str, list[Orphan]] = defaultdict(list)
            for orphan in finding.orphans:
                started = started_at(orphan)
                if started is None:
                    continue  # it ran before the session did
                place = started_by if in_child else place_of(spans[report.target.pid], started)
                groups[place].append(orphan)
            for place, orphans in groups.items():
                found[place].append(Left(replace(finding, orphans=tuple(orphans)), report, in_child))
    order = {span.place: number for number, span in enumerate(sorted(_all(spans)))}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def started_at(orphan: Orphan) -> Optional[int]:
    """When the thread was started, ns since the epoch; None for one from before the trace.

    Its stack may be older: glibc uses those of joined threads again.
    """
    owner, mapping = orphan.outstanding.owner, orphan.outstanding.mapping
    if owner is not None and owner.id.started_at and not owner.before_attach:
        return owner.id.started_at
    return mapping.made_at


def place_of(spans: Iterable[Span], moment: int) -> str:
    """What ran at a moment: of spans within each other, the innermost; empty where nothing did."""
    around = [span for span in spans if span.begin <= moment <= span.end]
    return max(around, key=lambda span: (span.begin, -span.end)).place if around else ""


def _started_by(report: Report, by_pid: Mapping[int, Report], spans: Mapping[int, Sequence[Span]]) -> str:
    """The place that started a process, or the process above it that pytest started."""
    seen: set[int] = set()
    while report.target.parent is not None and report.target.pid not in seen:
        seen.add(report.target.pid)
        if report.target.parent in spans:
            began = report.clock.wall_ns(report.ended_at) - round(report.seconds * 1e9)
            return place_of(spans[report.target.parent], began)
        above = by_pid.get(report.target.parent)
        if above is None:
            break
        report = above
    return ""


def _all(spans: Mapping[int, Sequence[Span]]) -> Iterable[Span]:
    return (span for several in spans.values() for span in several)
