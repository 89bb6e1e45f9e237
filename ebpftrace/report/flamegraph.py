# SPDX-License-Identifier: Apache-2.0
"""Leaked or resident bytes as a flame graph: one HTML file that needs no network.

Drawn by d3-flame-graph (see ``vendor/README.md``).  Names from the target reach the page
only as JSON data, and its script sets them only as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources

from ebpftrace.model import Report
from ebpftrace.report.leaked import Box, WeightedStack, leaked_stacks
from ebpftrace.text import escape

_PAGE = "flamegraph.html"
_SCRIPTS = {"/*D3*/": "d3.min.js", "/*FLAMEGRAPH*/": "d3-flamegraph.umd.min.js"}
_DATA = "/*REPORT*/"
_INLINED = "inlined"


def render(report: Report) -> str:
    """The page of a report; it says so where there is no leak to draw."""
    comm = escape(report.target.comm)
    title = f"Leaked by {comm} (PID {report.target.pid})"
    stacks = leaked_stacks(report)
    return draw(title, comm or str(report.target.pid), "leaked", "left mapped", stacks)


def draw(title: str, root: str, done: str, did: str, stacks: Iterable[WeightedStack]) -> str:
    """The page of these stacks, whose first box is ``root``.

    ``done`` and ``did`` say what became of the bytes, and what the functions did to them.
    """
    package = resources.files(__package__)
    page = (package / _PAGE).read_text(encoding="utf-8")
    for mark, file in _SCRIPTS.items():
        page = page.replace(mark, (package / "vendor" / file).read_text(encoding="utf-8"))
    # Last, so that a name from the target cannot pass for one of the marks.
    before, after = page.split(_DATA)
    # Flat stacks: a tree as deep as a runaway recursion would be too deep for the encoder.
    flat = [{"weight": one.weight, "boxes": [_box(box) for box in one.boxes[1:]]} for one in stacks]
    document = {"title": title, "root": root, "done": done, "did": did, "stacks": flat}
    # "</script>" or "<!--" in a name would end the script, even inside a string.
    return before + json.dumps(document).replace("<", "\\u003c") + after


def _box(box: Box) -> list[str]:
    source = f"{box.file}:{box.line}" if box.line else box.file
    return [box.name, source, _INLINED if box.inlined else ""]
