"""``ebpftrace scan``: all processes of the host in one look, without tracing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

import click

from ebpftrace.cli import options

_PART = 4
"""Exit status where we saw a part of the host only: what else there is could not be judged."""

_EXAMPLES = """
\b
Examples:
  ebpftrace scan               which process looks as if it leaked?
  ebpftrace scan --for 60      which one grows?
  ebpftrace scan --json | jq '.processes[] | select(.exited_threads > 0)'
"""


@click.command("scan", epilog=_EXAMPLES)
@click.option(
    "--for",
    "seconds",
    type=options.Seconds(min=0.1),
    metavar="TIME",
    help="Look twice, so far apart, and tell growth.",
)
@options.top("Most processes to show.", default=20)
@click.option("--json", "json_output", is_flag=True, help="Report as one JSON object.")
@options.output(options.WHOLE)
def scan(seconds: Optional[float], top: int, json_output: bool, output: Optional[Path]) -> None:
    """Rank the processes of this host by how much they look like a leak of mappings.

    Also tells which lines of /proc/meminfo deserve attention.  Needs no tracing; without root, only
    your own processes are looked at closely, and the exit status is 4 where that is the lesser part.
    """
    from ebpftrace.jobs.scan import run
    from ebpftrace.report import scan as text
    from ebpftrace.report import scan_json
    from ebpftrace.report.output import check_writable, page_width, write, write_stream

    if output is not None:
        check_writable(str(output))
    census = run(seconds)
    if json_output:
        page = scan_json.render(census, top)
    else:
        page = text.render(census, top, page_width(sys.stdout, output))
    if output is None:
        write_stream(sys.stdout, page)
    else:
        write(str(output), page)
    if not census.sees_all:
        sys.exit(_PART)
