# SPDX-License-Identifier: Apache-2.0
"""Leaked bytes for speedscope.app, in its own file format.

https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources and
https://www.speedscope.app/file-format-schema.json: a "sampled" profile, one sample for
each stack, weighted in bytes.
"""

from __future__ import annotations

import json
from typing import Any

from ebpftrace import __version__
from ebpftrace.model import Report
from ebpftrace.report.leaked import Box, leaked_stacks
from ebpftrace.text import escape

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def render(report: Report) -> str:
    """The profile as one JSON object."""
    numbers: dict[Box, int] = {}
    samples: list[list[int]] = []
    weights: list[int] = []
    for stack in leaked_stacks(report):
        samples.append([numbers.setdefault(box, len(numbers)) for box in stack.boxes])
        weights.append(stack.weight)
    title = f"leaked by {escape(report.target.comm)} (PID {report.target.pid})"
    profile = {
        "type": "sampled",
        "name": title,
        "unit": "bytes",
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }
    document = {
        "$schema": _SCHEMA,
        "name": title,
        "exporter": f"ebpftrace {__version__}",
        "activeProfileIndex": 0,
        "shared": {"frames": [_frame(box) for box in numbers]},
        "profiles": [profile],
    }
    return json.dumps(document) + "\n"


def _frame(box: Box) -> dict[str, Any]:
    frame: dict[str, Any] = {"name": box.name}
    if box.file:
        frame["file"] = box.file
    if box.line:
        frame["line"] = box.line
    return frame
