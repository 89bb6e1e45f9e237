# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.mmap-leaks/1``: one report, one object, one line.

Several targets (``-p`` repeated) or intervals (``-i``) are several lines (JSON Lines).
``schema/mmap-leaks-1.json`` describes the object for machines.  Sizes are in bytes,
times ISO 8601 in local time with offset, addresses hexadecimal strings; null if unknown.
Bytes of a name that are not UTF-8 are written as ``\\xff``; other characters, including
control characters, are not changed (JSON escapes them).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Optional

from ebpftrace import __version__
from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import CommandEnd, Finding, Orphan, OwnedBy, Processes, Report, Sums, Thread, ThreadTotal
from ebpftrace.report.json_parts import (
    calls_object,
    finding_object,
    fit,
    iso_time,
    stack_object,
    target_object,
)
from ebpftrace.report.view import Selection, View, select, shortened
from ebpftrace.text import without_surrogates

SCHEMA = "ebpftrace.mmap-leaks/1"

_ROWS_AT_ONCE = 1000
"""How many mappings have their texts in memory at once: a finding may have a hundred thousand."""

_SYSTEM_CALLS = ("mmap", "munmap", "mremap", "brk")
_OWNERS_KEPT = 1024
_NULL = "null"
_NO_OWNER = (
    '"owner_tid": null, "owner_inner_tid": null, "owner_name": null, "owner_creator_tid": null, '
    '"owner_creator_inner_tid": null, "owner_creator_name": null, "owner_started_at": null, '
    '"owner_exited_at": null'
)


def render(report: Report, view: View) -> Iterator[str]:
    """The report as one line of ASCII JSON, part by part.

    The view's filters apply; ``hidden`` has what they leave out.
    """
    selection = select(report, view)
    yield _begun(_summary(report, selection), "findings")
    for position, finding in enumerate(shortened(one, view.most_mappings) for one in selection.shown):
        yield ", " * bool(position) + _begun(_finding(finding), "mappings")
        yield from _rows(finding.orphans, report)
        yield "]}"
    yield "]}\n"


def render_all(reports: Sequence[Report], processes: Processes, view: View) -> Iterator[str]:
    """The reports of several processes as one line of ASCII JSON, part by part."""
    commands = [report.command for report in reports if report.command is not None]
    members = {
        "schema": SCHEMA,
        "version": __version__,
        "command": _command(commands[-1]) if commands else None,
        "undecided": sum(report.undecided for report in reports),
        "processes": _processes(processes),
    }
    yield _begun(members, "reports")
    for position, report in enumerate(reports):
        yield ", " * bool(position)
        *parts, last = render(report, view)
        yield from parts
        yield last.rstrip("\n")
    yield "]}\n"


def _begun(members: dict[str, Any], array: str) -> str:
    """An object with these members up to the first item of ``array``, its last member."""
    return f'{json.dumps(members, allow_nan=False)[:-1]}, "{array}": ['


def _rows(orphans: Sequence[Orphan], report: Report) -> Iterator[str]:
    owners = _Owners(report)
    for first in range(0, len(orphans), _ROWS_AT_ONCE):
        rows = [_row(orphan, owners) for orphan in orphans[first : first + _ROWS_AT_ONCE]]
        yield ", " * bool(first) + ", ".join(rows)


def _summary(report: Report, selection: Selection) -> dict[str, Any]:
    """All members but the findings."""
    target, memory, calls, losses = report.target, report.memory, report.calls, report.losses
    left_out = selection.left_out
    return {
        "schema": SCHEMA,
        "version": __version__,
        "target": {
            **target_object(target),
            "parent_pid": target.parent,
            "threads_start": target.threads_start,
            "threads_end": target.threads,
        },
        "window": {
            "seconds": report.seconds,
            "ended_by": report.ended_by.value,
            "ended_at": iso_time(report.clock.wall_ns(report.ended_at)),
        },
        "memory": {
            "virt_start": memory.virt_start,
            "virt_end": memory.virt_end,
            "rss_start": memory.rss_start,
            "rss_end": memory.rss_end,
        },
        "threads_only": report.threads_only,
        "calls": {**calls_object(calls), **(dict.fromkeys(_SYSTEM_CALLS) if report.threads_only else {})},
        "losses": {
            "events": losses.events,
            "mappings": losses.mappings,
            "stacks": losses.stacks,
            "threads": losses.threads,
        },
        "outstanding": {"mappings": report.outstanding_mappings, "bytes": report.outstanding_bytes},
        "unexplained_bytes": report.unexplained_bytes,
        "unexplained": [{"name": without_surrogates(name), "bytes": of} for name, of in report.unexplained],
        "threads": [_thread(total) for total in selection.threads],
        "hidden": {
            "findings": left_out.findings,
            "leaks": left_out.leaks,
            "bytes": left_out.size,
            "threads": left_out.threads,
            "thread_bytes": left_out.threads_size,
        },
        "undecided": report.undecided,
        "search": {
            "searches": report.searched.searches,
            "bytes": report.searched.bytes_searched,
            "unsearched_bytes": report.searched.unsearched_bytes,
            "complete": report.searched.complete,
            "gaps": [without_surrogates(gap) for gap in report.searched.gaps],
            "cpu_seconds": report.searched.cpu_seconds,
        },
        "command": _command(report.command),
        "executed": without_surrogates(report.executed) or None,
        "processes": _processes(report.processes),
        "is_child": report.is_child,
        "notes": [without_surrogates(note) for note in report.notes],
        "cost": _cost(report),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    """All members of a finding but its mappings."""
    accepted = finding.accepted
    return {
        **finding_object(finding),
        "fingerprint": fingerprint(finding),
        "accepted": {"by": accepted.by.value, "why": without_surrogates(accepted.why)} if accepted else None,
        "sites": [
            {"count": site.count, "bytes": site.size, "stack": stack_object(site.stack)}
            for site in finding.sites
        ],
        "more_sites": finding.more_sites,
        "called": [
            {"function": without_surrogates(function), "count": number} for function, number in finding.called
        ],
        "more_mappings": {
            **_sums(finding.unlisted.all),
            "before_attach": _sums(finding.unlisted.older),
        },
    }


def _sums(sums: Sums) -> dict[str, Optional[int]]:
    return {"count": sums.number, "bytes": sums.size, "rss_bytes": sums.rss, "swap_bytes": sums.swap}


def _command(command: Optional[CommandEnd]) -> Optional[dict[str, Any]]:
    if command is None:
        return None
    return {
        "argv": [without_surrogates(argument) for argument in command.argv],
        "exit_status": command.exit_status,
        "signal": command.signal,
    }


def _processes(processes: Optional[Processes]) -> Optional[dict[str, Any]]:
    if processes is None:
        return None
    return {"followed": processes.followed, "judged": processes.judged, "lost": processes.lost}


def _cost(report: Report) -> Optional[dict[str, Any]]:
    if report.cost is None:
        return None
    return {
        "cpu_seconds": report.cost.cpu_seconds,
        "bpf_seconds": report.cost.bpf_seconds,
        "bpf_runs": report.cost.bpf_runs,
    }


def _thread(total: ThreadTotal) -> dict[str, Any]:
    thread = total.thread
    return {
        "tid": thread.id.tid,
        "inner_tid": thread.inner_tid,
        "name": without_surrogates(thread.name),
        "alive": thread.alive,
        "mappings": total.mappings,
        "bytes": total.size,
        "brk_growth": total.brk_growth,
        "stack": stack_object(total.stack),
    }


class _Owners:
    """The members of mappings that tell of their owners; many may have one, mostly one after the other."""

    def __init__(self, report: Report) -> None:
        self.monotonic_began = report.clock.wall_ns(0)
        """The wall clock when the monotonic one began, ns."""
        self._text_of = lru_cache(_OWNERS_KEPT)(self._text)
        self._last: tuple[Optional[OwnedBy], Optional[Thread]] = None, None
        self._last_text = self._text(*self._last)

    def text(self, owned_by: Optional[OwnedBy], owner: Optional[Thread]) -> str:
        last_by, last = self._last
        if owner is not last or owned_by is not last_by:
            self._last = owned_by, owner
            self._last_text = self._text_of(owned_by, owner)
        return self._last_text

    def _text(self, owned_by: Optional[OwnedBy], owner: Optional[Thread]) -> str:
        why = f'"owned_by": {_quoted(owned_by.value) if owned_by else _NULL}'
        if owner is None:
            return f"{why}, {_NO_OWNER}"
        creator = owner.creator
        return (
            f'{why}, "owner_tid": {owner.id.tid}, '
            f'"owner_inner_tid": {_number(owner.inner_tid)}, "owner_name": {_quoted(owner.name)}, '
            f'"owner_creator_tid": {creator.tid if creator else _NULL}, '
            f'"owner_creator_inner_tid": {_number(owner.creator_inner_tid)}, '
            f'"owner_creator_name": {_quoted(owner.creator_name)}, '
            f'"owner_started_at": {_quoted_time(owner.id.started_at, self.monotonic_began)}, '
            f'"owner_exited_at": {_quoted_time(owner.exited_at, self.monotonic_began)}'
        )


def _row(orphan: Orphan, owners: _Owners) -> str:
    """One mapping, as an object.

    Written by hand: a report may have a hundred thousand, and the encoder takes three times as long.
    """
    (mapping, owner, owned_by, _, _), rss, guard, swap = orphan
    pieces, made_at, mapper, prot, flags, _, _, made, _, file = mapping
    start, end = pieces[0].start, pieces[-1].end
    extent = _range(start, end)
    if len(pieces) == 1:
        size, parts = end - start, f"{{{extent}}}"
    else:
        size, parts = mapping.size, ", ".join(f"{{{_range(*piece)}}}" for piece in pieces)
    return (
        f'{{{extent}, "bytes": {size}, "rss_bytes": {_NULL if rss is None else rss}, '
        f'"swap_bytes": {swap}, "guard_bytes": {_NULL if guard is None else guard}, "pieces": [{parts}], '
        f'"made_bytes": {made.end - made.start if made else _NULL}, '
        f'"file": {_quoted(file) if file else _NULL}, '
        f'"prot": {_NULL if prot is None else prot}, "flags": {_NULL if flags is None else flags}, '
        f'"mapper_tid": {mapper.tid if mapper else _NULL}, '
        f'"mapped_at": {_quoted_time(made_at, owners.monotonic_began)}, {owners.text(owned_by, owner)}}}'
    )


def _number(value: Optional[int]) -> str:
    return _NULL if value is None else str(value)


def _range(start: int, end: int) -> str:
    return f'"start": "{start:#x}", "end": "{end:#x}"'


@lru_cache(maxsize=1024)
def _quoted(text: Optional[str]) -> str:
    """A text of the target's as a JSON string; names repeat."""
    return json.dumps(fit(text))


def _quoted_time(monotonic_ns: Optional[int], monotonic_began: int) -> str:
    """A time as a JSON string; ``monotonic_began`` is the wall clock when the monotonic one did, ns."""
    return _NULL if monotonic_ns is None else f'"{iso_time(monotonic_began + monotonic_ns)}"'
