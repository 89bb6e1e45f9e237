# SPDX-License-Identifier: Apache-2.0
"""Folded stacks: ``root;...;leaf bytes``, the input of flamegraph.pl, inferno and speedscope."""

from __future__ import annotations

import re
from collections import Counter

from ebpftrace.model import Report
from ebpftrace.report.leaked import leaked_stacks

_SPACE = re.compile(r"\s")


def render(report: Report) -> str:
    """One line for each distinct stack, weighted by leaked bytes, largest first; empty without a leak.

    The format has no escapes: as in stackcollapse-perf.pl a semicolon in a name becomes a
    colon and a space an underscore (a last word of digits would be read as a weight).
    """
    weights: Counter[str] = Counter()
    for stack in leaked_stacks(report):
        weights[";".join(_fold(box.name) for box in stack.boxes)] += stack.weight
    return "".join(f"{stack} {weight}\n" for stack, weight in weights.most_common())


def _fold(name: str) -> str:
    return _SPACE.sub("_", name.replace(";", ":"))
