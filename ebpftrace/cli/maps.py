"""``ebpftrace maps``: what the address space of a process is made of, without tracing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

if TYPE_CHECKING:
    from ebpftrace.anatomy.look import Look

_EXAMPLES = """
\b
Examples:
  ebpftrace maps -p 31108                      one look
  ebpftrace maps -p 31108 --every 60           what changed, each minute, until Ctrl-C
  ebpftrace maps -p 31108 --every 5 --count 2  what changed in five seconds
  ebpftrace maps -p 31108 --all | grep file-data
"""


@click.command("maps", epilog=_EXAMPLES)
@click.option("-p", "--pid", type=click.IntRange(min=1), required=True, help="Process to look at.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    help="Look again so often, and say what changed.",
)
@click.option("--count", type=click.IntRange(min=2), help="Looks in all; default: until Ctrl-C or SIGTERM.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Rows of each table.")
@click.option("--all", "list_all", is_flag=True, help="List every area too.")
@click.option("--json", "json_output", is_flag=True, help="Report as JSON, one object for each look.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write here instead of stdout, whole or not at all.",
)
def maps(
    pid: int,
    every: Optional[float],
    count: Optional[int],
    top: int,
    list_all: bool,
    json_output: bool,
    output: Optional[Path],
) -> None:
    """Say what an address space is made of: stacks, heaps, files, and what nobody explains.

    Needs no tracing and changes nothing; the process is never stopped.  Works without root on your own
    processes, as far as the kernel lets their memory be read.
    """
    if count is not None and every is None:
        raise click.UsageError("--count needs --every SECONDS")

    from ebpftrace.portrait import run
    from ebpftrace.report import maps as text
    from ebpftrace.report import maps_json
    from ebpftrace.report.output import check_writable, write, write_stream

    if output is not None:
        check_writable(str(output))
    written: list[str] = []

    def tell(look: Look) -> None:
        page = maps_json.render(look) if json_output else text.render(look, top, list_all)
        separator = "\n" if written and not json_output else ""
        written.append(separator + page)
        if output is None:
            write_stream(sys.stdout, written[-1])
        else:
            write(str(output), "".join(written))

    run(pid, every, count, tell)
