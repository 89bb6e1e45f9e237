# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace trace``: what ``strace -f -e trace=memory,clone`` prints, without stopping the target."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import options

if TYPE_CHECKING:
    from ebpftrace.model import CommandEnd

_EXAMPLES = """
\b
Examples:
  ebpftrace trace -t -p 31108                         every call, until Ctrl-C
  ebpftrace trace -t -p 31108 | grep 10489856         thread stacks of 10 MiB
  ebpftrace trace -k --min-bytes 1048576 -p 31108     who maps a MiB or more
  ebpftrace trace -e trace=mmap,munmap -Z -p 31108    the calls that fail
  ebpftrace trace -c -d 10 -p 31108                   ten seconds as a table
  ebpftrace trace -o log.txt -- ./server --once       from its first instruction
"""


@click.command("trace", epilog=_EXAMPLES)
@options.pids
@options.by_name("--name")
@click.option(
    "-e",
    "expressions",
    multiple=True,
    metavar="trace=SET",
    help="Calls by name, or %memory, %process; !SET: all but these.  Default: all that are known here.",
)
@options.min_bytes("Leave out calls about fewer bytes.")
@click.option("-z", "--successful-only", is_flag=True, help="Only calls that succeed.")
@click.option("-Z", "--failed-only", is_flag=True, help="Only calls that fail.")
@click.option(
    "-f", "--follow-forks/--no-follow-forks", default=True, help="Trace child processes too; the default."
)
@click.option("-t", "times", count=True, help="Time of day; -tt: with microseconds; -ttt: since the epoch.")
@click.option("-r", "--relative-timestamps", is_flag=True, help="Time since the line before.")
@click.option("-T", "--syscall-times", is_flag=True, help="How long each call took.")
@click.option("-k", "--stack-trace", is_flag=True, help="The user stack of each call.")
@click.option("-c", "--summary-only", is_flag=True, help="Count in the kernel, and print only a table.")
@click.option("-C", "--summary", is_flag=True, help="Print the table too.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object a line: calls, stacks and exits.")
@options.output(options.LINE_BY_LINE)
@options.duration("How long to trace.  Default: until Ctrl-C, or until all targets have exited.")
@click.option("-q", "quiet", count=True, help="Do not say that it has attached; -qq: nor that a task exited.")
@options.debuginfod
@options.command_line
def trace(
    pids: tuple[int, ...],
    names: tuple[str, ...],
    cgroups: tuple[str, ...],
    expressions: tuple[str, ...],
    min_bytes: int,
    successful_only: bool,
    failed_only: bool,
    follow_forks: bool,
    times: int,
    relative_timestamps: bool,
    syscall_times: bool,
    stack_trace: bool,
    summary_only: bool,
    summary: bool,
    json_output: bool,
    output: Optional[Path],
    duration: Optional[float],
    quiet: int,
    debuginfod: bool,
    command: tuple[str, ...],
) -> None:
    """Print memory and process calls as strace prints them, without stopping the target.

    A line is printed when its call has returned, so it is always whole.  Its time is when the call began.

    The exit status is that of COMMAND, 128 and the signal where one ended it.  COMMAND goes on when the
    trace ends before it.
    """
    pids = options.find_processes(pids, names, cgroups, command)
    if successful_only and failed_only:
        raise click.UsageError("-z and -Z together leave nothing")
    if summary and summary_only:
        raise click.UsageError("give either -c or -C")
    if json_output and (summary or summary_only):
        raise click.UsageError("--json writes calls, not the table: leave out -c and -C")

    from ebpftrace.capture.calls.layout import Filters
    from ebpftrace.capture.checks.features import require_tracing
    from ebpftrace.report.output import Stream
    from ebpftrace.sessions.command import how_it_ended
    from ebpftrace.sessions.trace import Settings, run
    from ebpftrace.strace.format import Style, summary_of_losses
    from ebpftrace.strace.selection import SelectionError, select
    from ebpftrace.text import escape

    try:
        calls = select(expressions)
    except SelectionError as error:
        raise click.UsageError(str(error)) from None
    filters = Filters(
        calls=calls,
        min_bytes=min_bytes,
        only_failed=failed_only,
        only_successful=successful_only,
        follow_forks=follow_forks,
        timed=bool(times) or relative_timestamps or syscall_times or summary or summary_only or json_output,
        counted=summary or summary_only,
        printed=not summary_only,
        stacks=stack_trace and not summary_only,
    )
    style = Style(
        times=min(times, 3),
        relative=relative_timestamps,
        took=syscall_times,
        ends=quiet < 2 and not summary_only,
    )

    def attached() -> None:
        if not quiet:
            click.echo("attached", err=True)

    ends: list[CommandEnd] = []

    def command_ended(end: CommandEnd) -> None:
        ends.append(end)
        message = how_it_ended(end)
        if message and not quiet:
            click.echo(f"ebpftrace: {message}", err=True)

    require_tracing()
    with Stream(sys.stdout, None if output is None else str(output)) as stream:
        lost, notes = run(
            Settings(
                filters=filters,
                style=style,
                json=json_output,
                pids=pids,
                command=command,
                duration=duration,
                debuginfod=debuginfod,
            ),
            stream,
            attached,
            command_ended,
        )
    message = summary_of_losses(*lost)
    for line in (*([message] if message else []), *map(escape, notes)):
        click.echo(f"ebpftrace: {line}", err=True)
    if ends and ends[0].status:
        raise click.exceptions.Exit(ends[0].status)
