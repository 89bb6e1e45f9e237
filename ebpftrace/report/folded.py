# SPDX-License-Identifier: Apache-2.0
"""Folded stacks: ``root;...;leaf bytes``, the input of flamegraph.pl, inferno and speedscope."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ebpftrace.model import Report
from ebpftrace.report.leaked import WeightedStack, leaked_stacks

_SPACE = re.compile(r"\s")


def render(report: Report) -> str:
    """One line for each distinct stack, weighted by leaked bytes, largest first; empty without a leak."""
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
