# SPDX-License-Identifier: Apache-2.0
"""The table of ``strace -c``, with the wall-clock time of the calls (``strace -c -w``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ebpftrace.units import NS

_RULE = "------ ----------- ----------- --------- --------- ----------------\n"
_HEADER = "% time     seconds  usecs/call     calls    errors syscall\n"


class Total(NamedTuple):
    """The sums for one call."""

    name: str
    calls: int
    errors: int
    ns: int
    """Time between entry and return, of all calls together."""


def table(totals: Iterable[Total]) -> str:
    """The table, with the call that took most time first; just head and foot if there were no calls."""
    rows = sorted((total for total in totals if total.calls), key=lambda total: (-total.ns, total.name))
    everything = Total(
        "total", sum(row.calls for row in rows), sum(row.errors for row in rows), sum(row.ns for row in rows)
    )
    lines = [_row(row, 100 * row.ns / everything.ns if everything.ns else 0.0) for row in rows]
    return _HEADER + _RULE + "".join(lines) + _RULE + _row(everything, 100.0)


def _row(row: Total, percent: float) -> str:
    errors = str(row.errors) if row.errors else ""
    each = row.ns // 1000 // row.calls if row.calls else 0
    return f"{percent:6.2f} {row.ns / NS:11.6f} {each:11} {row.calls:9} {errors:>9} {row.name}\n"
