# SPDX-License-Identifier: Apache-2.0
"""Selects the reports to show when many processes were followed, and sums up the others in a line."""

from __future__ import annotations

from collections.abc import Sequence

from ebpftrace.model import EndedBy, Processes, Report
from ebpftrace.text import plural


def is_worth_showing(report: Report) -> bool:
    """There is a leak, or something that could not be judged."""
    return any(one.fails for one in report.findings) or report.in_doubt > 0 or report.losses.may_hide


def chosen(reports: Sequence[Report]) -> list[Report]:
    """The reports worth showing, leaks first; if there are none, those of processes that the user named."""
    informative = [report for report in reports if is_worth_showing(report)]
    if informative:
        return sorted(informative, key=lambda report: not any(finding.fails for finding in report.findings))
    named = [report for report in reports if not report.is_child]
    return [_last_image(report, reports) for report in named]


def last_line(reports: Sequence[Report], processes: Processes) -> str:
    """A line about the processes whose reports are not shown; empty if there are none."""
    lines = []
    if processes.followed:
        shown = sum(report.is_child and is_worth_showing(report) for report in reports)
        rest = processes.judged - shown
        threads = "created a thread" if processes.judged == 1 else "created threads"
        lines.append(
            f"Followed: {plural(processes.followed, 'process', 'processes')} (forked or executed); "
            f"{processes.judged} {threads}, {rest} of them have nothing to report"
        )
    if processes.lost:
        lost = plural(processes.lost, "process", "processes")
        lines.append(f"LOST: {lost} could not be followed: too many ran at once")
    return "\n".join(lines)


def _last_image(report: Report, reports: Sequence[Report]) -> Report:
    """Return the report on the last program that a process executed, if it created threads."""
    if report.ended_by is not EndedBy.EXEC:
        return report
    later = [one for one in reports if one.is_child and one.target.pid == report.target.pid]
    return later[-1] if later else report
