# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace maps``: what the address space of a process is made of, without tracing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import options

if TYPE_CHECKING:
    from ebpftrace.classify.maps_report import MapsReport

_EXAMPLES = """
\b
Examples:
  ebpftrace maps -p 31108                      what there is now
  ebpftrace maps -p 31108 --every 60           what changed, each minute, until Ctrl-C
  ebpftrace maps -p 31108 --every 5 --count 2  what changed in five seconds
  ebpftrace maps -p 31108 --all | grep file-data
"""


@click.command("maps", epilog=_EXAMPLES)
@options.one_pid("Process to examine.")
@click.option(
    "--every",
    type=options.Seconds(min=0.1),
    metavar="TIME",
    help="Read it again at this interval, and report what changed.",
)
@click.option(
    "--count",
    type=click.IntRange(min=2),
    metavar="N",
    help="Number of reports; default: until Ctrl-C or SIGTERM.",
)
@options.top("Rows of each table.")
@click.option("--all", "list_all", is_flag=True, help="List every area too.")
@click.option("--json", "json_output", is_flag=True, help="Report as JSON, one object for each report.")
@options.debuginfod
@options.output(options.WHOLE)
def maps(
    pid: int,
    every: Optional[float],
    count: Optional[int],
    top: int,
    list_all: bool,
    json_output: bool,
    debuginfod: bool,
    output: Optional[Path],
) -> None:
    """Say what an address space is made of: stacks, heaps, files, and what remains unexplained.

    It needs no tracing and changes nothing; the process is never stopped.  It works without root on your own
    processes, as far as the kernel lets their memory be read.
    """
    if count is not None and every is None:
        raise click.UsageError("--count needs --every TIME")

    from ebpftrace.report import maps as text
    from ebpftrace.report import maps_json
    from ebpftrace.report.output import check_writable, page_width, write, write_stream
    from ebpftrace.sessions.maps import run

    if output is not None:
        check_writable(str(output))
    pages: list[str] = []

    def show(maps_report: MapsReport) -> None:
        if json_output:
            page = maps_json.render(maps_report)
        else:
            page = text.render(maps_report, top, list_all, page_width(sys.stdout, output))
            if maps_report.growth is not None:
                page = f"\n{page}"
        if output is None:
            write_stream(sys.stdout, page)
        else:
            pages.append(page)
            write(str(output), "".join(pages))

    run(pid, every, count, show, debuginfod=debuginfod)
