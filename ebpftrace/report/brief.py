# SPDX-License-Identifier: Apache-2.0
"""A report in at most twenty lines: the verdict, and of the largest leaks where they come from and why."""

from __future__ import annotations

from rich.cells import cell_len

from ebpftrace import frames
from ebpftrace.model import Finding, Report
from ebpftrace.report.headline import next_step, title, verdict_lines
from ebpftrace.report.tables import NARROWEST, WIDTH, wrapped
from ebpftrace.report.view import View, select
from ebpftrace.text import change, duration, escape, pid_inside, plural, shorten, size

MAX_LINES = 20
_NAME_WIDTH = 16
_LABEL = 12
_MAX_LABEL = 20
"""Cells for the highlighted beginning of a verdict."""
_MAX_VERDICT_LINES = 9
"""Only a report with many kinds of leaks has more of them."""


def render(report: Report, view: View, *, width: int = WIDTH) -> str:
    """The report as text of at most ``MAX_LINES`` lines in ``width`` cells (at least 60)."""
    width = max(width, NARROWEST)
    page = []
    for _, text in verdict_lines(report):
        first, colon, rest = text.partition(": ")
        label = first + colon
        is_short = rest and cell_len(label) <= _MAX_LABEL
        page += wrapped(rest, first=label, width=width) if is_short else wrapped(text, width=width)
    hidden_lines = len(page) - _MAX_VERDICT_LINES
    if hidden_lines > 0:
        page = [*page[:_MAX_VERDICT_LINES], f"... and {plural(hidden_lines, 'more line')} without --brief"]
    page += ["", *_target(report, width)]
    selection = select(report, view)
    shown = [*selection.leaks, *selection.undecided]
    left = [
        *shown,
        *(one for one in selection.hidden if one.accepted is None and (one.leak or one.undecided)),
    ]
    for number, finding in enumerate(shown, start=1):
        block = _finding(number, finding, width)
        if len(page) + len(block) + (len(left) > 1) > MAX_LINES:
            break
        page += block
        left = left[1:]
    if left:
        total = size(sum(finding.size for finding in left))
        page.append(f"and {plural(len(left), 'more finding')}, {total}, without --brief")
    return "".join(f"{line.rstrip()}\n" for line in page)


def _target(report: Report, width: int) -> list[str]:
    """Return the process, and the next step if no leak explains its growth: at most three lines."""
    target, memory = report.target, report.memory
    grown = change(memory.virt_start, memory.virt_end) if report.seconds > 0 else ""
    of = f" ({grown})" if grown else ""
    name = shorten(escape(target.comm), _NAME_WIDTH)
    traced = f", traced for {duration(report.seconds)}" if report.seconds > 0 else ", not traced"
    pid = pid_inside(target.pid, target.inner_pid)
    text = f"{name} ({pid}): VIRT {size(memory.virt_end)}{of}, RSS {size(memory.rss_end)}{traced}"
    lines = wrapped(text, first="target".ljust(_LABEL), width=width)
    step = next_step(report)
    if step is not None:
        lines.append(f"{'next':<{_LABEL}}{step.command}")
    return lines


def _finding(number: int, finding: Finding, width: int) -> list[str]:
    """Return a leak, its origin, the evidence and the advice: at most seven lines."""
    columns = width - _LABEL
    lines = [shorten(f"{number}. {finding.verdict.value}: {title([finding])}", width)]
    site = frames.culprit(finding.stack)
    if site is not None:
        label = "created at" if finding.verdict.of_stacks else "mapped at"
        lines.append(f"{label:<{_LABEL}}{frames.site(site, columns)}")
    if finding.start_routine is not None:
        lines.append(f"{'started at':<{_LABEL}}{frames.site(finding.start_routine, columns)}")
    for label, text in (("why", finding.evidence[0] if finding.evidence else ""), ("advice", finding.advice)):
        if text:
            first, *more = wrapped(escape(text), first=label.ljust(_LABEL), width=width)
            lines.append(first)
            if more:
                rest = " ".join(line.strip() for line in more)
                lines.append(" " * _LABEL + shorten(rest, columns))
    return lines
