# SPDX-License-Identifier: Apache-2.0
"""One finding in a sentence and in lines: what formats for machines show to people."""

from __future__ import annotations

from collections.abc import Sequence

from ebpftrace import frames
from ebpftrace.model import Finding, Report
from ebpftrace.report import finding_text
from ebpftrace.report.headline import title
from ebpftrace.text import duration, escape

_WIDTH = 100


def process(report: Report) -> str:
    """The process that a report is of."""
    return f"{escape(report.target.comm) or '?'} (PID {report.target.pid})"


def sentence(finding: Finding) -> str:
    """Return a finding as one phrase: ``never-joined-thread: 9 stacks, 90.0 MiB, made by run_timer``."""
    frame = frames.culprit(finding.stack)
    parts = [f"{finding.verdict.value}: {title([finding])}"]
    if frame is not None:
        parts.append(f"made by {frames.name(frame)}")
    if finding.start_routine is not None:
        parts.append(f"threads that ran {frames.name(finding.start_routine)}")
    return ", ".join(parts)


def lines(finding: Finding, report: Report) -> Sequence[str]:
    """All of a finding, as the report for a terminal has it."""
    rows = finding_text.rows(finding, report, _WIDTH)
    return [f"{label:<12}{text}".rstrip() for label, text in rows]


def doubts(report: Report) -> list[str]:
    """Why a report is not the whole truth; empty on a good one."""
    reasons = []
    if report.in_doubt:
        reasons.append(
            f"of {report.in_doubt:,} mappings of exited threads it cannot be told whether they are leaked"
        )
    if report.losses.may_hide:
        reasons.append("not everything could be recorded, so more may leak")
    if report.left_out.leaks:
        reasons.append(f"the saved report leaves out {report.left_out.leaks:,} leaks (--top, --min-bytes)")
    return reasons


def window(report: Report) -> str:
    """Return the length of the trace."""
    return f"traced for {duration(report.seconds)}" if report.seconds > 0 else "not traced"
