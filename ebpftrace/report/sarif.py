# SPDX-License-Identifier: Apache-2.0
"""SARIF 2.1.0, the format of static analysers that forges and editors show.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html: one run, a rule for each verdict, a result
for each leak and each finding that could not be judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from ebpftrace import __version__, frames
from ebpftrace.fingerprint import FORM, fingerprint
from ebpftrace.model import AcceptedBy, Finding, Frame, Report, Verdict
from ebpftrace.report import words
from ebpftrace.report.places import Place, Repository
from ebpftrace.text import escape, without_surrogates

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "SRCROOT"
_RULES = {
    Verdict.NEVER_JOINED: "A thread exited and was never joined",
    Verdict.JOINED_LATER: "A thread exited and was joined later",
    Verdict.NOT_JOINED_YET: "A thread exited and is not joined yet",
    Verdict.ABANDONED_STACK: "A stack of the application outlived its last thread",
    Verdict.ORPHANED_MAPPING: "A mapping outlived the thread that made it",
    Verdict.HANDED_OVER: "A mapping outlived the thread that made it, and pointers to it are kept",
    Verdict.LOST_MAPPING: "Nothing points into a mapping any more",
    Verdict.GROWING_THREADS: "There are ever more threads of one place",
    Verdict.STACK_CACHE: "A stack is in the cache of the C library",
    Verdict.MALLOC_ARENA: "A heap of malloc outlived the thread that made it",
    Verdict.JUST_EXITED: "A thread exited just before the report",
}
_MAX_FRAMES = 64


def render(reports: Sequence[Report], repository: Repository) -> str:
    """The log as one JSON object."""
    rules = list(_RULES)
    shown = [
        (finding, report)
        for report in reports
        for finding in report.findings
        if finding.leak or finding.undecided
    ]
    run = {
        "tool": {
            "driver": {
                "name": "ebpftrace",
                "version": __version__,
                "rules": [_rule(verdict) for verdict in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {_ROOT: {"uri": Path(repository.root).absolute().as_uri().rstrip("/") + "/"}},
        "invocations": [_invocation(report) for report in reports],
        "results": [_result(finding, report, rules, repository) for finding, report in shown],
    }
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, allow_nan=False) + "\n"


def _rule(verdict: Verdict) -> dict[str, Any]:
    return {
        "id": verdict.value,
        "name": "".join(part.capitalize() for part in verdict.value.split("-")),
        "shortDescription": {"text": _RULES[verdict]},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["resource-leak", "threads" if verdict.of_stacks else "memory"]},
    }


def _invocation(report: Report) -> dict[str, Any]:
    ended = report.clock.wall_ns(report.ended_at) / 1e9
    invocation: dict[str, Any] = {
        "executionSuccessful": True,
        "startTimeUtc": _utc(ended - report.seconds),
        "endTimeUtc": _utc(ended),
        "properties": {
            "process": without_surrogates(report.target.comm),
            "pid": report.target.pid,
            "windowSeconds": report.seconds,
        },
    }
    doubts = [{"level": "warning", "message": {"text": doubt}} for doubt in words.doubts(report)]
    if doubts:
        invocation["toolExecutionNotifications"] = doubts
    return invocation


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _result(
    finding: Finding, report: Report, rules: Sequence[Verdict], repository: Repository
) -> dict[str, Any]:
    reasons = [words.sentence(finding), *map(escape, finding.evidence)]
    if finding.advice:
        reasons.append(escape(finding.advice))
    result: dict[str, Any] = {
        "ruleId": finding.verdict.value,
        "ruleIndex": rules.index(finding.verdict),
        "kind": "fail" if finding.leak else "open",
        "level": "error" if finding.leak else "none",
        "message": {"text": ".\n".join(reasons)},
        "locations": [_place_of(finding, report, repository)],
        "partialFingerprints": {f"ebpftrace/v{FORM}": fingerprint(finding)},
        "occurrenceCount": finding.count,
        "properties": {
            "bytes": finding.size,
            "bytesPerMinute": finding.bytes_per_minute,
            "certainty": finding.certainty.value,
            "pid": report.target.pid,
        },
    }
    if finding.stack.frames:
        shown = finding.stack.frames[:_MAX_FRAMES]
        result["stacks"] = [
            {
                "message": {"text": "created at" if finding.verdict.of_stacks else "mapped at"},
                "frames": [_frame(frame, repository) for frame in shown],
            }
        ]
    if finding.accepted is not None and finding.accepted.by is AcceptedBy.SUPPRESSION:
        why = without_surrogates(finding.accepted.why)
        result["suppressions"] = [{"kind": "external", "justification": why}]
    elif finding.accepted is not None:
        result["baselineState"] = "unchanged"
    return result


def _place_of(finding: Finding, report: Report, repository: Repository) -> dict[str, Any]:
    """Always one, since forges refuse a result without: of a program without debug information, its file."""
    place = repository.place(finding) or Place(report.target.exe or report.target.comm or "?", None, False)
    frame = frames.culprit(finding.stack) or finding.start_routine
    location = _location(place)
    if frame is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": frames.name(frame), "kind": "function"}]
    return location


def _frame(frame: Frame, repository: Repository) -> dict[str, Any]:
    place = repository.of(frame)
    location = _location(place) if place is not None else {}
    location["logicalLocations"] = [{"fullyQualifiedName": frames.name(frame), "kind": "function"}]
    entry: dict[str, Any] = {"location": location}
    module = frames.place(frame, full=False)
    if module:
        entry["module"] = module
    return entry


def _location(place: Place) -> dict[str, Any]:
    artifact: dict[str, Any] = {"uri": _uri(place.file)}
    if place.in_repository:
        artifact["uriBaseId"] = _ROOT
    physical: dict[str, Any] = {"artifactLocation": artifact}
    region = _region(place.line)
    if region is not None:
        physical["region"] = region
    return {"physicalLocation": physical}


def _uri(file: str) -> str:
    """An absolute path as file:, a relative one as it is, with no colon that would end a scheme."""
    path = quote(file.encode("utf-8", "surrogateescape" if _is_bytes(file) else "backslashreplace"))
    path = path.replace(":", "%3A")
    return f"file://{path}" if path.startswith("/") and not path.startswith("//") else path.lstrip("/")


def _is_bytes(file: str) -> bool:
    try:
        file.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _region(line: Optional[int]) -> Optional[dict[str, int]]:
    return {"startLine": line} if line else None
