# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace growth``: how processes grow, interval by interval, and what makes them grow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import options

if TYPE_CHECKING:
    from ebpftrace.model import Clock, CommandEnd, TargetInfo
    from ebpftrace.report.output import Stream
    from ebpftrace.size_changes.model import Size, Step, Summary

_DURATION = 60.0
"""Seconds that running processes are watched for."""

_FAULT_PERIOD = 32
"""Page faults of a thread of which one is looked at: docs/performance.md has what that costs."""

_EXAMPLES = """
\b
Examples:
  ebpftrace growth -p 31108                    each second, for one minute
  ebpftrace growth -p 31108 -i 1m -d 1d        each minute, for a day
  ebpftrace growth -p 31108 --until-interrupt  until Ctrl-C, or until the process exits
  ebpftrace growth -n app_server               all processes of this name
  ebpftrace growth -p 31108 --rss              which code filled the memory that is resident
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
@click.option(
    "--rss/--no-rss",
    default=None,
    help="Say first, or not at all, which code filled the memory that is resident.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help=f"Look at one of N page faults of each thread; default: {_FAULT_PERIOD}.",
)
@click.option(
    "--folded",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write stacks and the resident bytes that they filled, for flamegraph.pl or speedscope.",
)
@click.option(
    "--flamegraph",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Write them as a flame graph, one self-contained page.",
)
@options.follow_forks("Watch child processes too")
@click.option("--json", "json_output", is_flag=True, help="One JSON object a line; the last ones sum up.")
@options.output(options.LINE_BY_LINE)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing on stderr.")
@options.debuginfod
@options.probes
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
    rss: Optional[bool],
    sample: Optional[int],
    folded: Optional[Path],
    flamegraph: Optional[Path],
    follow_forks: Optional[bool],
    json_output: bool,
    output: Optional[Path],
    quiet: bool,
    debuginfod: bool,
    probes: str,
    command: tuple[str, ...],
) -> None:
    """Watch VIRT and RSS, and say which calls, threads and places make them grow.

    This is what pidstat -r prints, with causes: what was mapped in an interval and still stands at its end,
    less what was unmapped.  The process is never stopped, and no call is recorded one by one.

    Where a process executes another program, that is watched as well, and so are child processes with -f:
    each that lives for more than a moment is watched, and shown once its size changes.  COMMAND is watched
    until it ends.  The exit status is that of COMMAND, 128 and the signal where one ended it.

    Some of the page faults of each thread are looked at, each with its call stack: they say which code
    filled the memory that is resident, and what smaps gained is split by their shares.  It never names more
    than what was gained; what has no place is said to have none.  --rss has this before the calls that make
    VIRT grow.  A heap that grows inside what is mapped, by mprotect, makes VIRT no larger: it shows by the
    page faults once it is filled.
    """
    pids = options.find_processes(pids, names, cgroups, command)
    options.check_duration(context, until_interrupt)
    if until_interrupt:
        duration = None
    elif duration is None and not command:
        duration = _DURATION
    if rss is False and (sample or folded or flamegraph):
        raise click.UsageError("--sample, --folded and --flamegraph have no meaning with --no-rss", context)
    options.check_files(output=output, folded=folded, flamegraph=flamegraph)
    fault_period = None if rss is False else sample or _FAULT_PERIOD
    needs_faults = bool(rss or sample or folded or flamegraph)

    from ebpftrace.capture.checks.features import require_tracing
    from ebpftrace.capture.layout import Probes
    from ebpftrace.report.output import Stream, check_writable
    from ebpftrace.sessions.growth import Settings, run

    for file in (folded, flamegraph):
        if file is not None:
            check_writable(str(file))
    require_tracing()
    with Stream(sys.stdout, None if output is None else str(output)) as stream:
        console = _Console(stream, json_output, quiet, output, of_several=len(pids) > 1, by_rss=bool(rss))
        settings = Settings(
            interval,
            duration,
            pids,
            command,
            follow_forks,
            debuginfod,
            fault_period,
            needs_faults,
            Probes(probes),
        )
        run(settings, console)
    if folded is not None or flamegraph is not None:
        from ebpftrace.report import resident
        from ebpftrace.report.output import write

        if folded is not None:
            write(str(folded), resident.folded(console.summaries))
        if flamegraph is not None:
            write(str(flamegraph), resident.flamegraph(console.summaries))
    if console.command is not None and console.command.status:
        raise click.exceptions.Exit(console.command.status)


def _draws() -> bool:
    """Standard output is a terminal that can show a curve."""
    from ebpftrace.report.growth import can_draw

    return sys.stdout.isatty() and can_draw(sys.stdout.encoding)


class _Console:
    """Writes lines as they come: the observer of ``sessions.growth``."""

    def __init__(
        self,
        stream: Stream,
        json_output: bool,
        quiet: bool,
        output: Optional[Path],
        *,
        of_several: bool,
        by_rss: bool = False,
    ) -> None:
        self.command: Optional[CommandEnd] = None
        """What became of COMMAND, once it is known."""
        self.summaries: list[Summary] = []
        self._output = output
        self._stream = stream
        self._json = json_output
        self._quiet = quiet
        self._of_several = of_several
        """Each line says of which process it is."""
        self._by_rss = by_rss
        self._pids: set[int] = set()
        self._has_table = False
        self._begun = 0
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
        self._begun += 1
        self._pids.add(target.pid)
        self._of_several |= len(self._pids) > 1
        self._stream.write(text.title(target, size, width=self._width))
        self._firsts.append((target, clock, size))
        if self._has_table or not self._of_several:
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
        self._stream.write(text.step(step, clock, pid=pid, by_rss=self._by_rss, width=self._width))

    def summary(self, summary: Summary) -> None:
        """Write the totals of the window."""
        from ebpftrace.report import growth as text
        from ebpftrace.report import growth_json

        self.summaries.append(summary)
        if self._json:
            self._stream.write(growth_json.summary(summary))
            return
        named = self._of_several or self._begun > 1
        self._stream.write(
            text.summary(summary, curve=self._curve, of_several=named, by_rss=self._by_rss, width=self._width)
        )

    def left_out(self, ended: int, lost: int) -> None:
        """Say how many child processes nothing was said of."""
        from ebpftrace.text import plural

        if self._quiet:
            return
        if ended:
            what = plural(ended, "child process", "child processes")
            click.echo(
                f"ebpftrace: {what} not shown: ended within an interval, did not grow, or grew less", err=True
            )
        if lost:
            what = plural(lost, "child process", "child processes")
            click.echo(f"ebpftrace: {what} not followed: too many at one time", err=True)

    def command_ended(self, end: CommandEnd) -> None:
        """Say what became of COMMAND."""
        from ebpftrace.sessions.command import how_it_ended

        self.command = end
        line = how_it_ended(end)
        if line and not self._quiet:
            click.echo(f"ebpftrace: {line}", err=True)

    def _begin_table(self) -> None:
        """Write the head of the table, and the first sizes of all processes, once."""
        from ebpftrace.report import growth as text

        if not self._firsts:
            return
        self._has_table = True
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
