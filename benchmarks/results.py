# SPDX-License-Identifier: Apache-2.0
"""What was measured, as data and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from benchmarks.ratios import NO_PROGRESS, Spread

SCHEMA = "ebpftrace.benchmarks/3"


@dataclass(frozen=True)
class Cell:
    """One tool under one kind of load."""

    ratios: tuple[float, ...] = ()
    """Of each round, ``NO_PROGRESS`` where nothing got done."""
    seen: Optional[float] = None
    """Share of the calls that the tool saw, where it says so; of all rounds together."""
    failure: str = ""
    """Why the tool could not be measured."""
    is_noisy: bool = False
    """No round compared like with like: what else the machine did is in the ratios."""

    @property
    def spread(self) -> Optional[Spread]:
        """None where nothing was measured."""
        return Spread.of(self.ratios) if self.ratios else None


Table = Mapping[str, Mapping[str, Cell]]
"""By kind of load, by tool."""


@dataclass(frozen=True)
class OwnCost:
    """What the tracer itself used; seconds, bytes; CPU as a share of one core."""

    what: str
    """Which of the figures grows: mappings, threads, rate or sites."""
    amount: float
    """How many mappings, threads or sites there were, or calls a second."""
    attach_seconds: float
    """Median of several."""
    cpu_share: float
    anonymous_bytes: int
    """Of all its processes, the most that was seen, before and during the report."""
    pss_bytes: int
    """At the same time."""
    report_seconds: float
    """From the signal to the whole report."""
    detach_seconds: float
    """From the whole report to the end of the tracer."""


@dataclass(frozen=True)
class Scan:
    """One ``ebpftrace scan`` of the host."""

    processes: int
    """Examined by it."""
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Searched:
    """One search of a process for suspects that nothing refers to."""

    resident_bytes: int
    """That one pass reads."""
    suspects: int
    works: bool
    """The process works all the time; else it waits, and one pass is enough."""
    passes: int
    seconds: float
    cpu_seconds: float
    """With the start: numpy, and the program that reads registers."""
    most_bytes: int
    """Of memory, of the whole searching process."""
    slowdown: Optional[float]
    """Of the process that is searched, while it is; None of one that waits."""


@dataclass(frozen=True)
class Import:
    """How long Python takes to import what a command needs, in seconds; see python -X importtime."""

    statement: str
    seconds: float
    costliest: tuple[tuple[str, float], ...]
    """Modules by the time of their own code."""


@dataclass(frozen=True)
class Program:
    """One of our BPF programs under load."""

    kind: str
    name: str
    runs: int
    ns_per_run: float
    """With what the kernel's measuring adds."""


@dataclass(frozen=True)
class Results:
    """One run of the benchmarks."""

    conditions: Mapping[str, str]
    table: Table = field(default_factory=dict)
    paces: Mapping[str, float] = field(default_factory=dict)
    """By kind of load, seconds that an operation of the untraced process takes."""
    own: tuple[OwnCost, ...] = ()
    scans: tuple[Scan, ...] = ()
    searches: tuple[Searched, ...] = ()
    imports: tuple[Import, ...] = ()
    programs: tuple[Program, ...] = ()
    failures: tuple[str, ...] = ()
    """What could not be measured besides cells of the table, and why."""


def to_json(results: Results) -> str:
    """One JSON object; infinite ratios become null."""
    content = asdict(results)
    for cells in content["table"].values():
        for cell in cells.values():
            cell["ratios"] = [ratio if math.isfinite(ratio) else None for ratio in cell["ratios"]]
    return json.dumps({"schema": SCHEMA, **content}, indent=1) + "\n"


def from_json(text: str) -> Results:
    """What ``to_json`` wrote.  Raises ValueError where it is something else."""
    content: dict[str, Any] = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"not {SCHEMA}")
    table = {
        kind: {
            tool: Cell(
                tuple(NO_PROGRESS if ratio is None else ratio for ratio in cell["ratios"]),
                cell["seen"],
                cell["failure"],
                cell["is_noisy"],
            )
            for tool, cell in cells.items()
        }
        for kind, cells in content["table"].items()
    }
    return Results(
        conditions=content["conditions"],
        table=table,
        paces=content["paces"],
        own=tuple(OwnCost(**own) for own in content["own"]),
        scans=tuple(Scan(**scan) for scan in content["scans"]),
        searches=tuple(Searched(**searched) for searched in content.get("searches", ())),
        imports=tuple(
            Import(
                entry["statement"],
                entry["seconds"],
                tuple((name, seconds) for name, seconds in entry["costliest"]),
            )
            for entry in content["imports"]
        ),
        programs=tuple(Program(**program) for program in content["programs"]),
        failures=tuple(content["failures"]),
    )
