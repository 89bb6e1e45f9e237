"""``python -m benchmarks``: see ``make bench`` and ``make bench-compare``."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import click

from benchmarks import chart, imports, own_cost, programs, tables
from benchmarks.comparison import regressions
from benchmarks.loads import KINDS, kind_named
from benchmarks.results import Results, from_json, to_json
from benchmarks.side_by_side import measure
from benchmarks.tools import FLOOR, OURS, OURS_WITHOUT_STACKS, ROOT, TOOLS, UNTRACED, CannotRun
from ebpftrace.errors import CannotTrace

_RECORDED = ROOT / "benchmarks" / "recorded.json"
_PAGE = ROOT / "docs" / "performance.md"
_CHART = ROOT / "docs" / "performance.svg"
_COMPARED = (UNTRACED, FLOOR, OURS_WITHOUT_STACKS, OURS)
_SHOWN_KINDS = [(kind.name, kind.what) for kind in KINDS]

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


@click.group()
def main() -> None:
    """Measure what tracing costs."""


@main.command()
@_kinds
@click.option("--tool", "tools", multiple=True, type=click.Choice([tool.name for tool in TOOLS]))
@_rounds
@_seconds
@click.option(
    "--trial", type=click.Path(file_okay=False, path_type=Path), help="Write there, and record nothing."
)
def run(
    kinds: Sequence[str], tools: Sequence[str], rounds: int, seconds: float, trial: Optional[Path]
) -> None:
    """Measure everything, record it, and write it into docs/performance.md."""
    kinds = kinds or [kind.name for kind in KINDS]
    tools = tools or [tool.name for tool in TOOLS]
    results = Results(conditions=_conditions(rounds, seconds))
    recorded = trial / "recorded.json" if trial else _RECORDED
    if trial:
        trial.mkdir(parents=True, exist_ok=True)
    try:
        results = replace(
            results,
            imports=tuple(imports.measure(rounds)),
            own=tuple(own_cost.measure(case) for case in own_cost.CASES),
            programs=tuple(
                program for kind in kinds for program in programs.measure(kind_named(kind), seconds)
            ),
        )
    except (CannotRun, CannotTrace) as error:
        raise click.ClickException(str(error)) from None
    for kind in kinds:
        cells = measure(kind_named(kind), tools, rounds, seconds, _say)
        results = replace(results, table={**results.table, kind: cells})
        recorded.write_text(to_json(results))  # so that hours are not lost
    page = tables.page(results, _SHOWN_KINDS)
    drawing = chart.render(results, _SHOWN_KINDS, OURS)
    if trial:
        (trial / "performance.md").write_text(page)
        (trial / "performance.svg").write_text(drawing)
    else:
        _PAGE.write_text(tables.replaced(_PAGE.read_text(), page))
        _CHART.write_text(drawing)
    click.echo(page)


@main.command()
def render() -> None:
    """Write docs/performance.md and its chart once more, from what is recorded."""
    results = from_json(_RECORDED.read_text())
    _PAGE.write_text(tables.replaced(_PAGE.read_text(), tables.page(results, _SHOWN_KINDS)))
    _CHART.write_text(chart.render(results, _SHOWN_KINDS, OURS))


@main.command()
@_kinds
@_rounds
@_seconds
def compare(kinds: Sequence[str], rounds: int, seconds: float) -> None:
    """Measure our own tool again, and warn where it has become dearer than recorded."""
    recorded = from_json(_RECORDED.read_text()).table
    now = {
        kind: measure(kind_named(kind), _COMPARED, rounds, seconds, _say)
        for kind in kinds or [kind for kind in recorded if kind in {kind.name for kind in KINDS}]
    }
    click.echo(tables.side_by_side(Results(conditions={}, table=now), list(now)))
    found = list(regressions(recorded, now, (OURS_WITHOUT_STACKS, OURS), FLOOR))
    for line in found:
        click.echo(f"warning: {line}", err=True)
    if not found:
        click.echo("nothing is dearer than recorded")


def _say(line: str) -> None:
    click.echo(line, err=True)


def _conditions(rounds: int, seconds: float) -> dict[str, str]:
    """What somebody who measures again must know."""
    return {
        "kernel": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "CPUs": f"{os.cpu_count()}, {_cpu_model()}",
        "load of the machine before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "rounds": f"{rounds} of {seconds:g} s, each against the same process untraced just before and after",
        "shown": "median (lowest-highest) of the ratios; 1.00: as fast as untraced",
        "versions": ", ".join(_version(command) for command in _VERSIONS),
    }


_VERSIONS = (
    ("strace", "-V"),
    ("perf", "--version"),
    ("bpftrace", "--version"),
    ("redis-server", "--version"),
)


def _version(command: Sequence[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return f"no {command[0]}"
    return said.partition("\n")[0]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "?"


if __name__ == "__main__":
    main()
