"""``ebpftrace growth``: how a process grows, interval by interval, and who makes it grow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import options

if TYPE_CHECKING:
    from ebpftrace.growth.model import Size, Step, Summary
    from ebpftrace.model import Clock, TargetInfo
    from ebpftrace.report.output import Stream

_EXAMPLES = """
\b
Examples:
  ebpftrace growth -p 31108                    each second, for one minute
  ebpftrace growth -p 31108 -i 60 -d 86400     each minute, for a day
  ebpftrace growth -p 31108 --until-interrupt  until Ctrl-C, or until the process exits
  ebpftrace growth -p 31108 --json | jq -c 'select(.virt_change > 1048576)'
"""


@click.command("growth", epilog=_EXAMPLES)
@options.one_pid("Process to watch.")
@click.option(
    "-i",
    "--interval",
    type=options.Seconds(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between one line and the next.",
)
@options.duration("How long to watch; a period is told after four times.", default=60.0)
@click.option("--until-interrupt", is_flag=True, help="Watch until Ctrl-C or SIGTERM instead.")
@click.option("--json", "json_output", is_flag=True, help="One JSON object a line; the last one sums up.")
@options.output(options.LINE_BY_LINE)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr.")
@options.debuginfod
@click.pass_context
def growth(
    context: click.Context,
    pid: int,
    interval: float,
    duration: float,
    until_interrupt: bool,
    json_output: bool,
    output: Optional[Path],
    quiet: bool,
    debuginfod: bool,
) -> None:
    """Watch VIRT and RSS, and say which calls, threads and places make them grow.

    What pidstat -r prints, with causes: what was mapped in an interval and still stands at its end, less
    what went.  The process is never stopped, and nothing is recorded call by call.
    """
    options.check_duration(context, until_interrupt)

    from ebpftrace.jobs.growth import Settings, run
    from ebpftrace.kernel.checks.features import require_tracing
    from ebpftrace.report.output import Stream

    require_tracing()
    with Stream(sys.stdout, None if output is None else str(output)) as stream:
        teller = _Teller(stream, json_output, quiet, output)
        run(Settings(pid, interval, None if until_interrupt else duration, debuginfod), teller)


def _draws() -> bool:
    """Standard output is a terminal that can show a curve."""
    from ebpftrace.report.sparkline import can_draw

    return sys.stdout.isatty() and can_draw(sys.stdout.encoding)


class _Teller:
    """Writes lines as they come: the session's observer."""

    def __init__(self, stream: Stream, json_output: bool, quiet: bool, output: Optional[Path]) -> None:
        self._output = output
        self._stream = stream
        self._json = json_output
        self._quiet = quiet
        self._curve = output is None and _draws()
        self._clock: Optional[Clock] = None

    def attached(self, target: TargetInfo, clock: Clock, size: Size) -> None:
        """Say that the probes are live, and how large the process is."""
        from ebpftrace.report import growth as text

        self._clock = clock
        if not self._quiet:
            click.echo("attached", err=True)
        if not self._json:
            self._stream.write(text.head(target, clock, size, width=self._width))

    def step(self, step: Step) -> None:
        """Write one interval."""
        from ebpftrace.report import growth as text
        from ebpftrace.report import growth_json

        assert self._clock is not None
        if self._json:
            self._stream.write(growth_json.step(step, self._clock))
        else:
            self._stream.write(text.step(step, self._clock, width=self._width))

    def summary(self, summary: Summary) -> None:
        """Write what the window comes to."""
        from ebpftrace.report import growth as text
        from ebpftrace.report import growth_json

        if self._json:
            self._stream.write(growth_json.summary(summary))
        else:
            self._stream.write(text.summary(summary, curve=self._curve, width=self._width))

    @property
    def _width(self) -> int:
        """Columns now: a terminal may have become narrower since the line before."""
        from ebpftrace.report.output import page_width

        return page_width(sys.stdout, self._output)
