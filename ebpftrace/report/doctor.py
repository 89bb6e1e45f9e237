# SPDX-License-Identifier: Apache-2.0
"""The result of ``doctor`` as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ebpftrace.model import Check

SCHEMA = "ebpftrace.doctor/1"


def can_trace(checks: Sequence[Check]) -> bool:
    """Return whether every required check passed."""
    return all(check.ok for check in checks if check.required)


def as_text(checks: Sequence[Check]) -> str:
    """Return one line per check, the remedy under what is missing, and the conclusion."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{_mark(check):8}{check.name:{width}}  {check.what}")
        if check.remedy:
            lines.append(f"{'':8}{'':{width}}  -> {check.remedy}")
    lines += ["", f"This machine can{'' if can_trace(checks) else 'not'} trace."]
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """Return one JSON object; ``remedy`` is null where there is none."""
    document = {
        "schema": SCHEMA,
        "can_trace": can_trace(checks),
        "checks": [
            {
                "name": check.name,
                "ok": check.ok,
                "required": check.required,
                "what": check.what,
                "remedy": check.remedy or None,
            }
            for check in checks
        ],
    }
    return json.dumps(document, indent=2)


def _mark(check: Check) -> str:
    if check.ok:
        return "ok"
    return "MISSING" if check.required else "lacking"
