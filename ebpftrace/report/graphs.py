# SPDX-License-Identifier: Apache-2.0
"""Leaked bytes by stack, as folded stacks, a profile for speedscope and a flame graph.

Folded stacks (``root;...;leaf bytes``) are the input of flamegraph.pl, inferno and speedscope. The profile is
in speedscope's own format, a "sampled" one with a sample for each stack, weighted in bytes
(https://github.com/jlfwong/speedscope/wiki/Importing-from-custom-sources and
https://www.speedscope.app/file-format-schema.json). The flame graph is one HTML file that needs no network,
drawn by d3-flame-graph (see ``vendor/README.md``); names from the target reach the page only as JSON data,
and its script sets them only as text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ebpftrace import __version__, frames
from ebpftrace.model import Finding, Frame, Report, Stack
from ebpftrace.text import escape


@dataclass(frozen=True)
class Box:
    """One level of a stack as a graph names it; the names are escaped."""

    name: str
    file: str = ""
    line: int = 0
    inlined: bool = False


@dataclass(frozen=True)
class WeightedStack:
    """A stack, outermost first, and the bytes that its leaks hold or that it filled."""

    boxes: tuple[Box, ...]
    weight: int


def leaked_stacks(report: Report) -> tuple[WeightedStack, ...]:
    """Return one stack for each leak that is not accepted, rooted in the target and its verdict.

    The largest first.  No leaked byte is left out: a finding without a stack ends in the start routine of its
    threads, or in ``[no stack]``.
    """
    root = Box(escape(report.target.comm) or str(report.target.pid))
    return tuple(
        WeightedStack((root, Box(f"[{finding.verdict.value}]"), *_boxes(finding)), finding.size)
        for finding in sorted(report.findings, key=lambda finding: finding.size, reverse=True)
        if finding.fails and finding.size
    )


def boxes_of(stack: Stack) -> list[Box]:
    """A stack, outermost first; a word in brackets where frames are missing."""
    cut = [] if stack.complete else [Box("[incomplete]" if stack.frames else "[no stack]")]
    return cut + [_box(frame) for frame in reversed(stack.frames)]


def _boxes(finding: Finding) -> list[Box]:
    if finding.stack.frames:
        return boxes_of(finding.stack)
    boxes = [Box("[before attach]" if finding.before_attach else "[no stack]")]
    if finding.start_routine is not None:
        boxes.append(_box(finding.start_routine))
    return boxes


def _box(frame: Frame) -> Box:
    return Box(frames.name(frame), escape(frame.file or ""), frame.line or 0, frame.inlined)


_SPACE = re.compile(r"\s")


def folded(report: Report) -> str:
    """Folded stacks: one line each, weighted by leaked bytes, largest first; empty without a leak."""
    return fold(leaked_stacks(report))


def fold(stacks: Iterable[WeightedStack]) -> str:
    """One line for each distinct stack, largest first.

    The format has no escapes: as in stackcollapse-perf.pl a semicolon in a name becomes a
    colon and a space an underscore (a last word of digits would be read as a weight).
    """
    weights: Counter[str] = Counter()
    for stack in stacks:
        weights[";".join(_fit(box.name) for box in stack.boxes)] += stack.weight
    return "".join(f"{stack} {weight}\n" for stack, weight in weights.most_common())


def _fit(name: str) -> str:
    """A name fit for the format."""
    return _SPACE.sub("_", name.replace(";", ":"))


_SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def speedscope(report: Report) -> str:
    """The profile for speedscope, as one JSON object."""
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


_PAGE = "flamegraph.html"
_SCRIPTS = {"/*D3*/": "d3.min.js", "/*FLAMEGRAPH*/": "d3-flamegraph.umd.min.js"}
_DATA = "/*REPORT*/"
_INLINED = "inlined"


def flamegraph(report: Report) -> str:
    """The flame graph of a report, as HTML; it says so where there is no leak to draw."""
    comm = escape(report.target.comm)
    title = f"Leaked by {comm} (PID {report.target.pid})"
    stacks = leaked_stacks(report)
    return draw(title, comm or str(report.target.pid), "leaked", "left mapped", stacks)


def draw(title: str, root: str, done: str, did: str, stacks: Iterable[WeightedStack]) -> str:
    """The flame graph of these stacks, as HTML, whose first box is ``root``.

    ``done`` and ``did`` say what became of the bytes, and what the functions did to them.
    """
    package = resources.files(__package__)
    page = (package / _PAGE).read_text(encoding="utf-8")
    for mark, file in _SCRIPTS.items():
        page = page.replace(mark, (package / "vendor" / file).read_text(encoding="utf-8"))
    # Last, so that a name from the target cannot pass for one of the marks.
    before, after = page.split(_DATA)
    # Flat stacks: a tree as deep as a runaway recursion would be too deep for the encoder.
    flat = [{"weight": one.weight, "boxes": [_page_box(box) for box in one.boxes[1:]]} for one in stacks]
    document = {"title": title, "root": root, "done": done, "did": did, "stacks": flat}
    # "</script>" or "<!--" in a name would end the script, even inside a string.
    return before + json.dumps(document).replace("<", "\\u003c") + after


def _page_box(box: Box) -> list[str]:
    source = f"{box.file}:{box.line}" if box.line else box.file
    return [box.name, source, _INLINED if box.inlined else ""]
