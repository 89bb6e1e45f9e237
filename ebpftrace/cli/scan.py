# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace scan``: all processes of the host at one moment, without tracing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

import click

from ebpftrace.cli import options

_PART = 4
"""Exit status if only a part of the host was visible, so that the rest could not be judged."""

_EXAMPLES = """
\b
Examples:
  ebpftrace scan               which process leaks?
  ebpftrace scan --for 60      which one grows?
  ebpftrace scan --json | jq '.processes[] | select(.exited_threads > 0)'
"""


@click.command("scan", epilog=_EXAMPLES)
@click.option(
    "--for",
    "seconds",
    type=options.Seconds(min=0.1),
    metavar="TIME",
    help="Read everything twice, this far apart, and report growth.",
)
@options.top("Most processes to show.", default=20)
@click.option("--json", "json_output", is_flag=True, help="Report as one JSON object.")
@options.output(options.WHOLE)
def scan(seconds: Optional[float], top: int, json_output: bool, output: Optional[Path]) -> None:
    """Rank the processes of this host by how strong the signs of leaked mappings are.

    It also names the lines of /proc/meminfo that deserve attention.  It needs no tracing.  Without root it
    examines only your own processes, and exits with 4 if these are the smaller part.
    """
    from ebpftrace import api
    from ebpftrace.report import scan as text
    from ebpftrace.report import scan_json
    from ebpftrace.report.output import check_writable, page_width, write, write_stream

    if output is not None:
        check_writable(str(output))
    host_scan = api.scan(seconds)
    if json_output:
        page = scan_json.render(host_scan, top)
    else:
        page = text.render(host_scan, top, page_width(sys.stdout, output))
    if output is None:
        write_stream(sys.stdout, page)
    else:
        write(str(output), page)
    if not host_scan.sees_all:
        sys.exit(_PART)
