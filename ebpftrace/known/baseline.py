# SPDX-License-Identifier: Apache-2.0
"""A baseline: the leaks that a program had when its gate was set up, as a file to be kept with the sources.

It is one JSON object.  ``count`` and ``bytes`` are the amount accepted for a fingerprint; the other fields
are for people who read the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ebpftrace.known.comparing import Amount, Leak, leaks_of
from ebpftrace.model import Finding
from ebpftrace.text import without_surrogates

SCHEMA = "ebpftrace.baseline/1"


class BadBaseline(ValueError):
    """The text is not a baseline; the message says why."""


def render(findings: Iterable[Finding]) -> str:
    """The text of a file with the leaks among the findings, one on each line, sorted by fingerprint."""
    leaks = leaks_of(findings)
    lines = [json.dumps(_entry(leaks[name])) for name in sorted(leaks)]
    body = ",\n    ".join(lines)
    body = f"[\n    {body}\n  ]" if lines else "[]"
    return f'{{\n  "schema": "{SCHEMA}",\n  "leaks": {body}\n}}\n'


def parse(text: str) -> Mapping[str, Amount]:
    """The accepted amounts by fingerprint.  Raises ``BadBaseline``."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadBaseline("it is not JSON") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise BadBaseline(f"its schema is not {SCHEMA}")
    entries = document.get("leaks")
    if not isinstance(entries, list):
        raise BadBaseline("it has no leaks")
    return dict(map(_parsed, entries))


def _entry(leak: Leak) -> dict[str, Any]:
    return {
        "fingerprint": leak.fingerprint,
        "verdict": leak.verdict.value,
        "count": leak.amount.count,
        "bytes": leak.amount.size,
        "place": without_surrogates(leak.place),
        "runs": without_surrogates(leak.routine),
    }


def _parsed(entry: Any) -> tuple[str, Amount]:
    if isinstance(entry, dict):
        name, count, size = entry.get("fingerprint"), entry.get("count"), entry.get("bytes")
        if isinstance(name, str) and type(count) is int and type(size) is int:
            return name, Amount(count, size)
    raise BadBaseline("a leak needs a fingerprint, a count and bytes")
