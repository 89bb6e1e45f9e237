# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace diff``: two saved reports compared, leak by leak."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional

import click

from ebpftrace.cli import known, options, saved
from ebpftrace.cli.gate import STATUS_LEAK, STATUS_UNDECIDED

_EXAMPLES = """
\b
Examples:
  ebpftrace mmap-leaks --json -o before.json -- ./server --once
  ebpftrace mmap-leaks --json -o after.json -- ./server --once     (built anew)
  ebpftrace diff before.json after.json              did the fix help?
  ebpftrace diff --markdown -o comment.md old.json new.json
"""


@click.command("diff", epilog=_EXAMPLES)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--json", "json_output", is_flag=True, help="Report as one JSON object.")
@click.option("--markdown", is_flag=True, help="Report as Markdown, for a comment on a pull request.")
@options.output(options.WHOLE)
@known.suppressions
def diff(
    old: Path,
    new: Path,
    json_output: bool,
    markdown: bool,
    output: Optional[Path],
    suppressions: tuple[Path, ...],
) -> None:
    """Compare two saved reports of mmap-leaks: which leaks are new, gone, grown or shrunk.

    OLD and NEW are what mmap-leaks --json wrote.  A leak is known by its fingerprint, which stays the same
    when the program is built anew.  Of processes that ended, or that were traced for about equally long, the
    numbers are compared; of a leak that grows all the time, its bytes a minute.
    """
    if json_output and markdown:
        raise click.UsageError("--json and --markdown exclude each other: give one of them")
    from ebpftrace.known.comparing import compare, run_of
    from ebpftrace.report import diff as pages
    from ebpftrace.report.output import check_writable, write, write_stream

    acceptance = known.load(suppressions, None)
    runs = [run_of(saved.last_of(saved.accepted([saved.load(path)], acceptance))) for path in (old, new)]
    if output is not None:
        check_writable(str(output))
    comparison = compare(*runs)
    render = pages.as_json if json_output else pages.markdown if markdown else pages.text
    page = render(comparison)
    if output is None:
        write_stream(sys.stdout, page)
    else:
        write(str(output), page)
    if comparison.is_worse:
        raise click.exceptions.Exit(STATUS_LEAK)
    if comparison.is_unsure:
        raise click.exceptions.Exit(STATUS_UNDECIDED)
