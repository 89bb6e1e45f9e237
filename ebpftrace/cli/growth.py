# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace growth``: how processes grow, interval by interval, and what makes them grow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import options

if TYPE_CHECKING:
    from ebpftrace.growth.model import Size, Step, Summary
    from ebpftrace.model import Clock, CommandEnd, TargetInfo
    from ebpftrace.report.output import Stream

_DURATION = 60.0
"""Seconds that running processes are watched for."""

_EXAMPLES = """
\b
Examples:
  ebpftrace growth -p 31108                    each second, for one minute
  ebpftrace growth -p 31108 -i 1m -d 1d        each minute, for a day
  ebpftrace growth -p 31108 --until-interrupt  until Ctrl-C, or until the process exits
  ebpftrace growth -n app_server               all processes of this name
  ebpftrace growth -- ./server --once          a command, from its first instruction
  ebpftrace growth -p 31108 --json | jq -c 'select(.virt_change > 1048576)'
"""


@click.command("growth", epilog=_EXAMPLES)
@options.pids
@options.by_name("-n", "--name")
@click.option(
    "-i",
    "--interval",
    type=options.Seconds(min=0.1),
    default=1.0,
    show_default=True,
    metavar="TIME",
    help="Between one line and the next.",
)
@options.duration(
    f"How long to watch; default: {_DURATION:g}, COMMAND until it ends.  A period shows after four times."
)
@click.option("--until-interrupt", is_flag=True, help="Watch until Ctrl-C or SIGTERM instead.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object a line; the last ones sum up.")
@options.output(options.LINE_BY_LINE)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing on stderr.")
@options.debuginfod
@options.command_line
@click.pass_context
def growth(
    context: click.Context,
    pids: tuple[int, ...],
    names: tuple[str, ...],
    cgroups: tuple[str, ...],
    interval: float,
    duration: Optional[float],
    until_interrupt: bool,
    json_output: bool,
    output: Optional[Path],
    quiet: bool,
    debuginfod: bool,
    command: tuple[str, ...],
) -> None:
    """Watch VIRT and RSS, and say which calls, threads and places make them grow.

    This is what pidstat -r prints, with causes: what was mapped in an interval and still stands at its end,
    less what was unmapped.  The process is never stopped, and no call is recorded one by one.

    COMMAND is watched until it ends or executes another program; its child processes are not.  The exit
    status is that of COMMAND, 128 and the signal where one ended it.
    """
    pids = options.find_processes(pids, names, cgroups, command)
    options.check_duration(context, until_interrupt)
    if until_interrupt:
        duration = None
    elif duration is None and not command:
        duration = _DURATION

    from ebpftrace.jobs.growth import Settings, run
    from ebpftrace.kernel.checks.features import require_tracing
    from ebpftrace.report.output import Stream

    require_tracing()
    with Stream(sys.stdout, None if output is None else str(output)) as stream:
        console = _Console(stream, json_output, quiet, output, of_several=len(pids) > 1)
        run(Settings(interval, duration, pids, command, debuginfod), console)
    if console.command is not None and console.command.status:
        raise click.exceptions.Exit(console.command.status)


def _draws() -> bool:
    """Standard output is a terminal that can show a curve."""
    from ebpftrace.report.sparkline import can_draw

    return sys.stdout.isatty() and can_draw(sys.stdout.encoding)


class _Console:
    """Writes lines as they come: the observer of ``jobs.growth``."""

    def __init__(
        self, stream: Stream, json_output: bool, quiet: bool, output: Optional[Path], *, of_several: bool
    ) -> None:
        self.command: Optional[CommandEnd] = None
        """What became of COMMAND, once it is known."""
        self._output = output
        self._stream = stream
        self._json = json_output
        self._quiet = quiet
        self._of_several = of_several
        self._curve = output is None and _draws()
        self._firsts: list[tuple[TargetInfo, Clock, Size]] = []
        """Processes whose first line is not printed yet."""

    def attached(self) -> None:
        """Say that the probes are live."""
        if not self._quiet:
            click.echo("attached", err=True)

    def began(self, target: TargetInfo, clock: Clock, size: Size) -> None:
        """Say how large the process is."""
        from ebpftrace.report import growth as text

        if self._json:
            return
        self._stream.write(text.title(target, size, width=self._width))
        self._firsts.append((target, clock, size))
        if not self._of_several:
            self._begin_table()

    def step(self, target: TargetInfo, clock: Clock, step: Step) -> None:
        """Write one interval."""
        from ebpftrace.report import growth as text
        from ebpftrace.report import growth_json

        if self._json:
            self._stream.write(growth_json.step(step, clock, target.pid))
            return
        self._begin_table()
        pid = target.pid if self._of_several else None
        self._stream.write(text.step(step, clock, pid=pid, width=self._width))

    def summary(self, summary: Summary) -> None:
        """Write the totals of the window."""
        from ebpftrace.report import growth as text
        from ebpftrace.report import growth_json

        if self._json:
            self._stream.write(growth_json.summary(summary))
            return
        page = text.summary(summary, curve=self._curve, of_several=self._of_several, width=self._width)
        self._stream.write(page)

    def command_ended(self, end: CommandEnd) -> None:
        """Say what became of COMMAND."""
        from ebpftrace.jobs.command import fate

        self.command = end
        line = fate(end)
        if line and not self._quiet:
            click.echo(f"ebpftrace: {line}", err=True)

    def _begin_table(self) -> None:
        """Write the head of the table, and the first sizes of all processes, once."""
        from ebpftrace.report import growth as text

        if not self._firsts:
            return
        self._stream.write(text.columns(of_several=self._of_several, width=self._width))
        for target, clock, size in self._firsts:
            pid = target.pid if self._of_several else None
            self._stream.write(text.first_line(clock, size, pid=pid, width=self._width))
        self._firsts = []

    @property
    def _width(self) -> int:
        """Columns now: a terminal may have become narrower since the line before."""
        from ebpftrace.report.output import page_width

        return page_width(sys.stdout, self._output)
