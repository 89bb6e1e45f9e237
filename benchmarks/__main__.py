# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks``: see ``make bench`` and ``make bench-compare``."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional, TypeVar

import click

from benchmarks import imports, own_cost, programs, scans, searches, tables
from benchmarks.comparison import regressions
from benchmarks.conditions import conditions, elsewhere, moment
from benchmarks.loads import KINDS, LoadDied, kind_named
from benchmarks.record import Record
from benchmarks.results import Results
from benchmarks.side_by_side import measure
from benchmarks.tools import (
    FLOOR,
    OURS,
    OURS_THREADS_ONLY,
    OURS_WITHOUT_STACKS,
    TOOLS,
    UNTRACED,
    CannotRun,
)
from ebpftrace.capture.checks.machine import mount_tracefs
from ebpftrace.errors import CannotTrace

_COMPARED = (UNTRACED, FLOOR, OURS_WITHOUT_STACKS, OURS_THREADS_ONLY, OURS)
_PARTS = ("table", "own", "scans", "searches", "programs", "imports")
_TABLE, _OWN, _SCANS, _SEARCHES, _PROGRAMS, _IMPORTS = _PARTS
_FAILURES = (CannotRun, CannotTrace, LoadDied, OSError, ValueError, subprocess.SubprocessError)
"""What one measurement may meet without ending all others."""

T = TypeVar("T")

_kinds = click.option(
    "--kind", "kinds", multiple=True, type=click.Choice([kind.name for kind in KINDS]), help="Only these."
)
_rounds = click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
_seconds = click.option(
    "--seconds",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Length of one measurement.",
)
_minutes = click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="For the table; when a kind of load has had its share, no new round of it begins.",
)
_trial = click.option(
    "--trial",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read and write in this directory, and leave what is recorded alone.",
)


@click.group()
def main() -> None:
    """Measure what tracing costs."""
    # Tools are ended with SIGINT; where a shell had us ignore it (a job in the background) they would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mount_tracefs()  # we do it ourselves when we trace; not all other tools do


@main.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(_PARTS), help="Only these.")
@_kinds
@click.option(
    "--tool", "tools", multiple=True, type=click.Choice([tool.name for tool in TOOLS]), help="Only these."
)
@_rounds
@_seconds
@_minutes
@_trial
def run(
    parts: Sequence[str],
    kinds: Sequence[str],
    tools: Sequence[str],
    rounds: int,
    seconds: float,
    minutes: float,
    trial: Optional[Path],
) -> None:
    """Measure everything, record it, and write it into docs/performance.md and README.md.

    After each step all that there is so far is written.  Where only some is measured, the rest of what was
    recorded stays.
    """
    record = _record(trial)
    is_partial = bool(parts or kinds or tools) and record.results.exists()
    before = record.read() if is_partial else Results(conditions={})
    run = _Run(record, before, rounds, seconds)
    kinds = kinds or [kind.name for kind in KINDS]
    parts = parts or ([_TABLE] if tools else _PARTS)
    if _TABLE in parts:
        run.table(kinds, tools or [tool.name for tool in TOOLS], 60 * minutes)
    if _OWN in parts:
        run.own_cost()
    if _SCANS in parts:
        run.scans()
    if _SEARCHES in parts:
        run.searches()
    if _PROGRAMS in parts:
        run.programs(kinds)
    if _IMPORTS in parts:
        run.imports()
    click.echo(record.page.read_text())


@main.command()
@_trial
def render(trial: Optional[Path]) -> None:
    """Write the documents and the chart once more, from what is recorded."""
    record = _record(trial)
    record.write(record.read())


@main.command()
@_kinds
@_rounds
@_seconds
@_minutes
@_trial
def compare(kinds: Sequence[str], rounds: int, seconds: float, minutes: float, trial: Optional[Path]) -> None:
    """Measure our own tool again, and warn if it costs more than recorded."""
    recorded = _record(trial).read().table
    kinds = kinds or [kind.name for kind in KINDS if kind.name in recorded]
    share = 60 * minutes / max(1, len(kinds))
    now = {kind: measure(kind_named(kind), _COMPARED, rounds, seconds, share, _say).cells for kind in kinds}
    click.echo(tables.side_by_side(Results(conditions={}, table=now), list(now)))
    found = list(regressions(recorded, now, (OURS_WITHOUT_STACKS, OURS_THREADS_ONLY, OURS), FLOOR))
    for line in found:
        click.echo(f"warning: {line}", err=True)
    if not found:
        click.echo("nothing costs more than recorded")


class _Run:
    """One run, recorded step by step."""

    def __init__(self, record: Record, before: Results, rounds: int, seconds: float) -> None:
        self._record = record
        here = conditions(rounds, seconds)
        self._elsewhere = elsewhere(before.conditions, here)
        known = {**here, **before.conditions} if self._elsewhere else {**before.conditions, **here}
        self._results = replace(before, conditions=known)
        self._rounds = rounds
        self._seconds = seconds

    def table(self, kinds: Sequence[str], tools: Sequence[str], patience: float) -> None:
        """``patience``: seconds for all of it, shared by the kinds."""
        is_all = len(tools) == len(TOOLS) and len(kinds) == len(KINDS)
        self._begin(_TABLE, "" if is_all else f" ({', '.join(kinds)}: {', '.join(tools)})")
        for name in kinds:
            share = patience / len(kinds)
            column = measure(kind_named(name), tools, self._rounds, self._seconds, share, _say)
            cells = {**self._results.table.get(name, {}), **column.cells}
            paces = dict(self._results.paces)
            if column.pace is not None:
                paces[name] = column.pace
            self._keep(replace(self._results, table={**self._results.table, name: cells}, paces=paces))

    def own_cost(self) -> None:
        self._begin(_OWN)
        self._keep(replace(self._results, own=()))
        for case in own_cost.CASES:
            cost = self._tried(f"own cost, {case.amount:g} {case.what}", own_cost.measure, case)
            if cost is not None:
                self._keep(replace(self._results, own=(*self._results.own, cost)))

    def scans(self) -> None:
        self._begin(_SCANS)
        self._keep(replace(self._results, scans=()))
        for started in scans.CROWDS:
            scan = self._tried(f"scan, {started} more processes", scans.measure, started, self._rounds)
            if scan is not None:
                self._keep(replace(self._results, scans=(*self._results.scans, scan)))

    def searches(self) -> None:
        self._begin(_SEARCHES)
        self._keep(replace(self._results, searches=()))
        for case in searches.CASES:
            found = self._tried(f"search, {case}", searches.measure, case, self._rounds)
            if found is not None:
                self._keep(replace(self._results, searches=(*self._results.searches, found)))

    def programs(self, kinds: Sequence[str]) -> None:
        self._begin(_PROGRAMS)
        kept = tuple(program for program in self._results.programs if program.kind not in kinds)
        self._keep(replace(self._results, programs=kept))
        for name in kinds:
            found = self._tried(f"programs, {name}", programs.measure, kind_named(name), self._seconds)
            if found is not None:
                self._keep(replace(self._results, programs=(*self._results.programs, *found)))

    def imports(self) -> None:
        self._begin(_IMPORTS)
        found = self._tried("imports", imports.measure, self._rounds)
        if found is not None:
            self._keep(replace(self._results, imports=tuple(found)))

    def _begin(self, part: str, only: str = "") -> None:
        """What failed last time may not fail now; ``only``: what of the part is measured, empty for all."""
        failures = tuple(
            reported for reported in self._results.failures if not reported.startswith(_TOLD[part])
        )
        when = {**self._results.conditions, f"{_TOLD[part]}{only}: measured": moment() + self._elsewhere}
        self._results = replace(self._results, conditions=when, failures=failures)

    def _tried(self, what: str, step: Callable[..., T], *arguments: object) -> Optional[T]:
        _say(what)
        try:
            return step(*arguments)
        except _FAILURES as error:
            reported = f"{what}: {error}"
            _say(reported)
            self._keep(replace(self._results, failures=(*self._results.failures, reported)))
            return None

    def _keep(self, results: Results) -> None:
        self._results = results
        self._record.write(results)


_TOLD = {
    _TABLE: "side by side",
    _OWN: "own cost",
    _SCANS: "scan",
    _SEARCHES: "search",
    _PROGRAMS: "programs",
    _IMPORTS: "imports",
}


def _record(trial: Optional[Path]) -> Record:
    return Record.of_a_trial(trial) if trial else Record.of_the_project()


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
