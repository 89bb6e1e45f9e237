# SPDX-License-Identifier: Apache-2.0
"""Reading the reports that mmap-leaks --json wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ebpftrace.cli.known import read

if TYPE_CHECKING:
    from ebpftrace.known.acceptance import Acceptance
    from ebpftrace.model import Report
    from ebpftrace.report.reading import Saved

_LARGEST = 4 << 30


def load(path: Path) -> Saved:
    """All reports of a file.  Raises click.UsageError."""
    from ebpftrace.report.reading import BadReport
    from ebpftrace.report.reading import read as parse
    from ebpftrace.text import escape

    try:
        return parse(read(path, _LARGEST))
    except BadReport as error:
        raise click.UsageError(
            f"{escape(str(path))} is not what mmap-leaks --json writes: {error}"
        ) from error


def accepted(files: Sequence[Saved], acceptance: Acceptance) -> list[Saved]:
    """The same with what suppressions and a baseline accept."""
    return [
        one._replace(
            reports=tuple(
                acceptance.accept(report, (number, *life))
                for report, life in zip(one.reports, _lives(one.reports))
            )
        )
        for number, one in enumerate(files)
    ]


def last_of(files: Sequence[Saved]) -> list[Report]:
    """The last report of each process, without those of --interval that came before it."""
    last = {
        (number, *life): report
        for number, one in enumerate(files)
        for report, life in zip(one.reports, _lives(one.reports))
    }
    return list(last.values())


def _lives(reports: Sequence[Report]) -> list[tuple[int, int]]:
    """Which process, and which program that it executed, each report is of."""
    from ebpftrace.model import EndedBy

    ended: Counter[int] = Counter()
    lives = []
    for report in reports:
        lives.append((report.target.pid, ended[report.target.pid]))
        ended[report.target.pid] += report.ended_by is not EndedBy.INTERVAL
    return lives
