# SPDX-License-Identifier: Apache-2.0
"""Reads reports that mmap-leaks --json wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ebpftrace.cli.known import read

if TYPE_CHECKING:
    from ebpftrace.known.acceptance import Acceptance
    from ebpftrace.model import Report
    from ebpftrace.report.reading import Saved


def load(path: Path) -> Saved:
    """All reports of a file.  Raises click.UsageError."""
    from ebpftrace.report.reading import BadReport
    from ebpftrace.report.reading import read as parse
    from ebpftrace.user_files import MAX_REPORT, shown

    try:
        return parse(read(path, MAX_REPORT))
    except BadReport as error:
        raise click.UsageError(f"{shown(path)} is not what mmap-leaks --json writes: {error}") from error


def accepted(files: Sequence[Saved], acceptance: Acceptance) -> list[Saved]:
    """Mark the findings that suppressions and a baseline accept."""
    from ebpftrace.report.reading import lives

    return [
        one._replace(
            reports=tuple(
                acceptance.accept(report, (number, *life))
                for report, life in zip(one.reports, lives(one.reports))
            )
        )
        for number, one in enumerate(files)
    ]


def last_of(files: Sequence[Saved]) -> list[Report]:
    """The last report of each process, without those of --interval that came before it."""
    from ebpftrace.report.reading import last_reports

    return [report for one in files for report in last_reports(one.reports)]
