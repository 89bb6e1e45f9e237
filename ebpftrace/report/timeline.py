# SPDX-License-Identifier: Apache-2.0
"""A timeline that ui.perfetto.dev and chrome://tracing open: threads, what they left mapped, the findings.

The JSON object format of "Trace Event Format" (the document that Chromium links from about:tracing): times in
microseconds; ``X`` is a slice, ``i`` an instant, ``C`` a counter, ``M`` names a track.  What a thread left is
mapped until the end of the window, so that the slices of one track always nest.  Times are whole numbers:
with the fractions of a float, slices would end up to half a microsecond apart, and Perfetto drops those that
overlap.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from ebpftrace.fingerprint import fingerprint as fingerprint_of
from ebpftrace.model import Finding, Orphan, Report, Thread
from ebpftrace.report import words
from ebpftrace.text import address, escape, size

_FIRST_TRACK = (1 << 22) + 1
"""Numbers above those of threads (PID_MAX_LIMIT, include/linux/threads.h) are tracks of findings."""
_MAX_SLICES = 20_000
"""Limit for one process; more can't be drawn."""


def render(reports: Sequence[Report]) -> str:
    """The trace as one JSON object."""
    events = [event for report in reports for event in _Process(report).events()]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"


class _Process:
    """The events of one report."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._pid = report.target.pid
        self._end = _microseconds(report, report.ended_at)
        self._begin = self._end - round(report.seconds * 1e6)

    def events(self) -> Iterator[dict[str, Any]]:
        report = self._report
        yield self._named("process_name", self._pid, escape(report.target.comm) or "?")
        yield from self._memory()
        owners: dict[tuple[int, int], Thread] = {}
        slices = 0
        tracks = _FIRST_TRACK
        for finding in sorted(report.findings, key=lambda one: (not one.fails, not one.undecided, -one.size)):
            name = fingerprint_of(finding)
            yield from self._finding(finding, name, tracks)
            tracks += 1
            for orphan in finding.orphans:
                owner = orphan.outstanding.owner
                if owner is None or slices >= _MAX_SLICES:
                    continue
                slices += 1
                owners.setdefault(owner.id, owner)
                yield self._mapping(orphan, finding, name, owner)
        for owner in owners.values():
            yield from self._lifetime(owner)
        if slices >= _MAX_SLICES:
            yield self._instant(f"only {_MAX_SLICES:,} mappings are drawn", self._pid, self._end, "p")

    def _memory(self) -> Iterator[dict[str, Any]]:
        memory = self._report.memory
        for name, start, end in (
            ("VIRT", memory.virt_start, memory.virt_end),
            ("RSS", memory.rss_start, memory.rss_end),
        ):
            for value, at in ((start, self._begin), (end, self._end)):
                if value is not None:
                    yield {"ph": "C", "name": name, "pid": self._pid, "ts": at, "args": {"bytes": value}}

    def _finding(self, finding: Finding, fingerprint: str, track: int) -> Iterator[dict[str, Any]]:
        """Its own track, from its first mapping to the end, whoever owned them."""
        first = min((self._mapped_at(orphan) for orphan in finding.orphans), default=self._begin)
        kind = "leak" if finding.fails else "cannot tell" if finding.undecided else "no leak"
        if finding.accepted is not None:
            kind = "accepted"
        yield self._named("thread_name", track, f"{kind}: {finding.verdict.value}")
        details = {
            "count": finding.count,
            "bytes": finding.size,
            "certainty": finding.certainty.value,
            "fingerprint": fingerprint,
            "why": "; ".join(map(escape, finding.evidence)),
            "advice": escape(finding.advice),
        }
        yield self._slice(words.sentence(finding), track, first, details)

    def _mapping(self, orphan: Orphan, finding: Finding, fingerprint: str, owner: Thread) -> dict[str, Any]:
        mapping = orphan.outstanding.mapping
        details = {
            "range": f"{address(mapping.start)}-{address(mapping.end)}",
            "bytes": mapping.size,
            "rss": orphan.rss,
            "mapped": "before the trace" if mapping.before_attach else "in the window",
            "fingerprint": fingerprint,
        }
        name = f"{finding.verdict.value}, {size(mapping.size)}"
        return self._slice(name, owner.id.tid, self._mapped_at(orphan), details)

    def _lifetime(self, thread: Thread) -> Iterator[dict[str, Any]]:
        tid = thread.id.tid
        yield self._named("thread_name", tid, escape(thread.name) or "?")
        if thread.id.started_at and self._time(thread.id.started_at) >= self._begin:
            yield self._instant("created", tid, self._time(thread.id.started_at))
        if thread.exited_at is not None:
            yield self._instant("exited", tid, self._time(thread.exited_at))

    def _mapped_at(self, orphan: Orphan) -> int:
        made = orphan.outstanding.mapping.made_at
        return self._begin if made is None else max(self._time(made), self._begin)

    def _time(self, monotonic_ns: int) -> int:
        return min(_microseconds(self._report, monotonic_ns), self._end)

    def _slice(self, name: str, track: int, at: int, details: dict[str, Any]) -> dict[str, Any]:
        return {
            "ph": "X",
            "name": name,
            "cat": "mmap-leaks",
            "pid": self._pid,
            "tid": track,
            "ts": at,
            "dur": self._end - at,
            "args": details,
        }

    def _instant(self, name: str, track: int, at: int, scope: str = "t") -> dict[str, Any]:
        return {"ph": "i", "name": name, "pid": self._pid, "tid": track, "ts": at, "s": scope}

    def _named(self, what: str, track: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": what, "pid": self._pid, "tid": track, "args": {"name": name}}


def _microseconds(report: Report, monotonic_ns: Optional[int]) -> int:
    """Since 1970: of several reports of one host, so that they lie right beside each other."""
    return report.clock.wall_ns(monotonic_ns or 0) // 1000
