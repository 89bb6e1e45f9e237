# SPDX-License-Identifier: Apache-2.0
"""How long Python takes to import what a command needs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.results import Import
from benchmarks.tools import ROOT

STATEMENTS = (
    "import ebpftrace.cli",
    "import ebpftrace.sessions.mmap_leaks",
    "import ebpftrace.sessions.mmap_leaks, bcc",
    "import ebpftrace.sessions.mmap_leaks, ebpftrace.report.terminal",
)
_COSTLIEST = 5
_LINE = re.compile(r"^import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)$", re.MULTILINE)


def measure(rounds: int) -> list[Import]:
    """Import each of ``STATEMENTS`` that often, and keep the fastest."""
    return [min((_import(statement) for _ in range(rounds)), key=_seconds) for statement in STATEMENTS]


def parse(statement: str, result: str) -> Import:
    """What ``python -X importtime`` wrote to stderr."""
    modules = [(name, int(own) / 1e6) for own, _, _, name in _LINE.findall(result)]
    return Import(statement, sum(seconds for _, seconds in modules), _costliest(modules))


def _costliest(modules: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(modules, key=lambda module: -module[1])[:_COSTLIEST])


def _seconds(entry: Import) -> float:
    return entry.seconds


def _import(statement: str) -> Import:
    command = [sys.executable, "-X", "importtime", "-c", statement]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    # What Python itself imports before the statement counts as well: nobody gets around it.
    return parse(statement, result)
