# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace report``: saved reports of mmap-leaks in any format, without root and without a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import known, options, outputs, saved
from ebpftrace.cli.gate import STATUS_LEAK, STATUS_UNDECIDED, Floor, FloorType, Gate, GateCommand

if TYPE_CHECKING:
    from ebpftrace.model import Report
    from ebpftrace.report.reading import Saved
    from ebpftrace.report.view import View

_EXAMPLES = """
\b
Examples:
  ebpftrace report leaks.json                          as mmap-leaks printed it
  ebpftrace report --sarif leaks.sarif leaks.json      for a forge
  ebpftrace report --pprof leaks.pb.gz leaks.json && go tool pprof -top leaks.pb.gz
  ebpftrace report --fail-on-leak --baseline known.json leaks.json
"""


@click.command("report", epilog=_EXAMPLES, cls=GateCommand)
@options.min_bytes("Leave out findings with fewer bytes.")
@options.top("Most findings to show.")
@click.option(
    "--show", type=click.Choice(["all", "leaks"]), default="all", show_default=True, help="What to report."
)
@click.option("--brief", is_flag=True, help="Report in at most 20 lines for each process.")
@click.option("--json", "json_output", is_flag=True, help="Report as JSON, one object for each report.")
@click.option("--folded", is_flag=True, help="Report as folded stacks, weighted by leaked bytes.")
@options.file(
    "--flamegraph",
    metavar="FILE.html",
    purpose="Also write a flame graph of leaked bytes, one self-contained page.",
)
@options.file(
    "--speedscope",
    metavar="FILE.json",
    purpose="Also write the leaked bytes as a profile for speedscope.",
)
@outputs.files
@options.output(options.WHOLE)
@known.suppressions
@known.baselines
@click.option(
    "--fail-on-leak",
    type=FloorType(),
    metavar="[=N|=SIZE]",
    help=f"Exit with status {STATUS_LEAK} where there is a leak (of at least N threads or mappings, or SIZE "
    f"bytes), with {STATUS_UNDECIDED} where something could not be judged.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing on stderr.")
@click.option("--no-color", is_flag=True, help="No colours (also NO_COLOR=1).")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
def report(
    min_bytes: int,
    top: int,
    show: str,
    brief: bool,
    json_output: bool,
    folded: bool,
    flamegraph: Optional[Path],
    speedscope: Optional[Path],
    output: Optional[Path],
    suppressions: tuple[Path, ...],
    baseline: Optional[Path],
    write_baseline: Optional[Path],
    fail_on_leak: Optional[Floor],
    quiet: bool,
    no_color: bool,
    files: tuple[Path, ...],
    junit: Optional[Path],
    sarif: Optional[Path],
    annotations: Optional[Path],
    pprof: Optional[Path],
    timeline: Optional[Path],
    repository: Optional[Path],
) -> None:
    """Show reports that mmap-leaks --json wrote, in any of its formats.

    Needs no root and no process.  FILE is - for standard input.  Of the reports of --interval all are shown,
    and the last one of a process counts for the files and the exit status.
    """
    forms = [name for name, given in (("brief", brief), ("json", json_output), ("folded", folded)) if given]
    if len(forms) > 1:
        raise click.UsageError(f"--{forms[0]} and --{forms[1]} exclude each other: give one of them")
    extra = outputs.Outputs(junit, sarif, annotations, pprof, timeline, repository)
    options.check_files(
        output=output,
        flamegraph=flamegraph,
        speedscope=speedscope,
        write_baseline=write_baseline,
        **extra.paths,
    )
    from ebpftrace.report import flamegraph as flame
    from ebpftrace.report import speedscope as scope
    from ebpftrace.report.output import check_writable, write, write_stream
    from ebpftrace.report.view import View

    acceptance = known.load(suppressions, baseline)
    held = [saved.load(path) for path in files]
    for path in (output, flamegraph, speedscope, write_baseline, *extra.paths.values()):
        if path is not None:
            check_writable(str(path))
    held = saved.accepted(held, acceptance)
    last = saved.last_of(held)
    if len(last) > 1 and (flamegraph or speedscope):
        raise click.UsageError("--flamegraph and --speedscope show one process: give a file with one")
    form = forms[0] if forms else "text"
    pages = _pages(held, form, View(top=top, show_all=show == "all", min_bytes=min_bytes), output, no_color)
    if output is None:
        write_stream(sys.stdout, pages)
    else:
        write(str(output), pages)
    if flamegraph is not None:
        write(str(flamegraph), flame.render(last[0]))
    if speedscope is not None:
        write(str(speedscope), scope.render(last[0]))
    extra.write(last)
    known.write_baseline(write_baseline, last)
    if not quiet:
        known.tell_unused(acceptance)
    gate = Gate(fail_on_leak, STATUS_LEAK)
    for number, one in enumerate(last):
        gate.add(number, one)
    gate.has_lost = any(one.processes is not None and one.processes.lost > 0 for one in held)
    gate.leaves_out = any(one.left_out.leaks for one in last)
    status = gate.status(None)
    if status:
        raise click.exceptions.Exit(status)


def _pages(held: list[Saved], form: str, view: View, output: Optional[Path], no_color: bool) -> Iterator[str]:
    from dataclasses import replace

    from ebpftrace.report import brief, folded, mmap_leaks_json, terminal
    from ebpftrace.report.family import chosen, last_line
    from ebpftrace.report.output import page_width, use_color

    width = page_width(sys.stdout, output)
    color = output is None and use_color(sys.stdout, no_color)
    apart = ""
    for one in held:
        reports: list[Report] = list(one.reports)
        if form == "folded":
            yield from map(folded.render, reports)
        elif form == "json" and one.processes is not None and any(report.is_child for report in reports):
            yield from mmap_leaks_json.render_all(reports, one.processes, view)
        elif form == "json":
            for report in reports:
                yield from mmap_leaks_json.render(report, view)
        else:
            shown = reports if one.processes is None else chosen(reports)
            for report in shown:
                whole = replace(report, processes=one.processes)
                if form == "brief":
                    yield apart + brief.render(whole, view, width=width)
                else:
                    yield apart + terminal.render(whole, view, width=width, color=color)
                apart = "\n"
            line = last_line(reports, one.processes) if one.processes is not None else ""
            if line:
                yield f"\n{line}\n"
