# SPDX-License-Identifier: Apache-2.0
"""Leaked bytes as a flame graph: one HTML file that needs no network.

Drawn by d3-flame-graph (see ``vendor/README.md``).  Names from the target reach the page
only as JSON data, and its script sets them only as text.
"""

from __future__ import annotations

import json
from importlib import resources

from ebpftrace.model import Report
from ebpftrace.report.leaked import Box, leaked_stacks
from ebpftrace.text import escape

_PAGE = "flamegraph.html"
_SCRIPTS = {"/*D3*/": "d3.min.js", "/*FLAMEGRAPH*/": "d3-flamegraph.umd.min.js"}
_DATA = "/*REPORT*/"
_INLINED = "inlined"


def render(report: Report) -> str:
    """The page; it says so where there is no leak to draw."""
    room = resources.files(__package__)
    page = (room / _PAGE).read_text(encoding="utf-8")
    for mark, file in _SCRIPTS.items():
        page = page.replace(mark, (room / "vendor" / file).read_text(encoding="utf-8"))
    # Last, so that a name from the target cannot pass for one of the marks.
    before, after = page.split(_DATA)
    return before + _data(report) + after


def _data(report: Report) -> str:
    # Flat stacks: a tree as deep as a runaway recursion would be too deep for the encoder.
    stacks = [
        {"weight": stack.weight, "boxes": [_box(box) for box in stack.boxes[1:]]}
        for stack in leaked_stacks(report)
    ]
    comm = escape(report.target.comm)
    document = {
        "title": f"Leaked by {comm} (PID {report.target.pid})",
        "root": comm or str(report.target.pid),
        "stacks": stacks,
    }
    # "</script>" or "<!--" in a name would end the script, even inside a string.
    return json.dumps(document).replace("<", "\\u003c")


def _box(box: Box) -> list[str]:
    source = f"{box.file}:{box.line}" if box.line else box.file
    return [box.name, source, _INLINED if box.inlined else ""]
