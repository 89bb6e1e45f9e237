# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace report``: saved reports of mmap-leaks in any format, without root and without a process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import known, options, outputs, pages, saved
from ebpftrace.cli.gate import STATUS_LEAK, Floor, Gate, GateCommand

if TYPE_CHECKING:
    from ebpftrace.report.reading import Saved

_EXAMPLES = """
\b
Examples:
  ebpftrace report leaks.json                          as mmap-leaks printed it
  ebpftrace report --sarif leaks.sarif leaks.json      for a forge
  ebpftrace report --pprof leaks.pb.gz leaks.json && go tool pprof -top leaks.pb.gz
  ebpftrace report --fail-on-leak --baseline known.json leaks.json
"""


@click.command("report", epilog=_EXAMPLES, cls=GateCommand)
@pages.options
@click.option("-q", "--quiet", is_flag=True, help="Print nothing on stderr.")
@click.option("--no-color", is_flag=True, help="No colours (also NO_COLOR=1).")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.pass_context
def report(
    context: click.Context,
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
    form = pages.form_of(brief=brief, json=json_output, folded=folded)
    extra = outputs.Outputs(junit, sarif, annotations, pprof, timeline, repository)
    options.check_files(
        output=output,
        flamegraph=flamegraph,
        speedscope=speedscope,
        write_baseline=write_baseline,
        **extra.paths,
    )
    from ebpftrace.report import graphs
    from ebpftrace.report.output import check_writable, write, write_stream

    acceptance = known.load(suppressions, baseline)
    held = [saved.load(path) for path in files]
    for path in (output, flamegraph, speedscope, write_baseline, *extra.paths.values()):
        if path is not None:
            check_writable(str(path))
    held = saved.accepted(held, acceptance)
    last = saved.last_of(held)
    if len(last) > 1 and (flamegraph or speedscope):
        raise click.UsageError("--flamegraph and --speedscope show one process: give a file with one")
    view = pages.view_of(context, top, show, min_bytes)
    text = _text(held, pages.Pages(form, view, output, no_color), form)
    if output is None:
        write_stream(sys.stdout, text)
    else:
        write(str(output), text)
    if flamegraph is not None:
        write(str(flamegraph), graphs.flamegraph(last[0]))
    if speedscope is not None:
        write(str(speedscope), graphs.speedscope(last[0]))
    extra.write(last)
    known.write_baseline(write_baseline, last)
    if not quiet:
        known.print_unused(acceptance)
    gate = Gate(fail_on_leak, STATUS_LEAK)
    for number, one in enumerate(last):
        gate.add(number, one)
    gate.has_lost = any(one.processes is not None and one.processes.lost > 0 for one in held)
    gate.leaves_out = any(one.left_out.leaks for one in last)
    status = gate.status(None)
    if status:
        raise click.exceptions.Exit(status)


def _text(held: Sequence[Saved], made: pages.Pages, form: str) -> Iterator[str]:
    for one in held:
        # Each report in JSON says by itself how many processes were followed.
        is_list = form == "json" and not any(report.is_child for report in one.reports)
        if one.processes is None or is_list:
            for report in one.reports:
                yield from made.page(report)
        else:
            yield from made.document(one.reports, one.processes)
