# SPDX-License-Identifier: Apache-2.0
"""Selects the findings that a report shows, for all output formats.

A filter never changes the result: the first line of a report, its totals and the exit status cover all
findings, and the report says how many findings a filter hides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from ebpftrace import frames
from ebpftrace.model import EndedBy, Finding, Frame, LeftOut, Processes, Report, Sums, ThreadTotal, Unlisted
from ebpftrace.text import plural


@dataclass(frozen=True)
class View:
    """The user's selection; the default shows everything worth a screen."""

    top: int = 10
    """Most findings (and rows of the thread table) to show."""
    show_all: bool = True
    """Also what is not a leak, and the table of threads (``--show all``)."""
    min_bytes: int = 0
    """Findings and threads with fewer bytes than this are left out."""
    most_mappings: Optional[int] = None
    """Most mappings of each finding that JSON lists; None: all."""


@dataclass(frozen=True)
class Selection:
    """The findings that a view selects; leaks and others are each sorted by bytes, largest first."""

    leaks: tuple[Finding, ...]
    undecided: tuple[Finding, ...]
    """Findings of which it can't be told whether they are leaks."""
    others: tuple[Finding, ...]
    threads: tuple[ThreadTotal, ...]
    accepted: tuple[Finding, ...]
    """Findings that are known to the user, of either kind."""
    hidden: tuple[Finding, ...]
    """Findings that the view leaves out."""
    left_out: LeftOut
    """These in figures, with what a saved report had left out before."""

    @property
    def shown(self) -> tuple[Finding, ...]:
        """All findings that are shown, those first that matter most."""
        return (*self.leaks, *self.undecided, *self.accepted, *self.others)


@dataclass(frozen=True)
class ThreadGroup:
    """Threads in one state that mapped mostly at one place."""

    totals: tuple[ThreadTotal, ...]
    """Largest first, at least one."""
    site: Optional[Frame]
    """The place, by which stacks are named; None where none was recorded."""

    @property
    def alive(self) -> bool:
        """Whether these threads are alive."""
        return self.totals[0].thread.alive

    @property
    def mappings(self) -> int:
        """Mappings of all of them."""
        return sum(total.mappings for total in self.totals)

    @property
    def size(self) -> int:
        """Bytes of their mappings."""
        return sum(total.size for total in self.totals)

    @property
    def brk_growth(self) -> int:
        """Bytes by which they moved the break."""
        return sum(total.brk_growth for total in self.totals)


def thread_groups(totals: Iterable[ThreadTotal]) -> list[ThreadGroup]:
    """Threads by state and place, the group with most bytes first."""
    groups: dict[tuple[bool, str], list[ThreadTotal]] = {}
    sites: dict[tuple[bool, str], Optional[Frame]] = {}
    for total in sorted(totals, key=lambda total: total.size + total.brk_growth, reverse=True):
        site = frames.culprit(total.stack)
        place = "" if site is None else f"{frames.name(site)} {frames.source(site)}"
        key = (total.thread.alive, place)
        groups.setdefault(key, []).append(total)
        sites.setdefault(key, site)
    found = [ThreadGroup(tuple(group), sites[key]) for key, group in groups.items()]
    return sorted(found, key=lambda group: group.size + group.brk_growth, reverse=True)


def shortened(finding: Finding, most: Optional[int]) -> Finding:
    """``finding`` with at most so many of its orphans, the oldest and the newest; the sums are the same."""
    if most is None or len(finding.orphans) <= most:
        return finding
    first, last = (most + 1) // 2, len(finding.orphans) - most // 2
    left_out = finding.orphans[first:last]
    older = (orphan for orphan in left_out if orphan.outstanding.mapping.before_attach)
    sums = Unlisted(Sums.of(left_out, finding.unlisted.all), Sums.of(older, finding.unlisted.older))
    return replace(finding, orphans=finding.orphans[:first] + finding.orphans[last:], unlisted=sums)


def select(report: Report, view: View) -> Selection:
    """Sort by bytes and apply the view's filters."""
    by_bytes = sorted(report.findings, key=lambda finding: finding.size, reverse=True)
    wanted = [finding for finding in by_bytes if _wanted(finding, view)]
    accepted = [finding for finding in wanted if finding.accepted is not None]
    new = [finding for finding in wanted if finding.accepted is None]
    leaks = [finding for finding in new if finding.leak]
    undecided = [finding for finding in new if not finding.leak and finding.undecided]
    others = [finding for finding in new if not finding.leak and not finding.undecided]
    hidden = [finding for finding in by_bytes if not _wanted(finding, view)]
    hidden += leaks[view.top :] + undecided[view.top :] + accepted[view.top :] + others[view.top :]

    totals = sorted(report.threads, key=lambda total: total.size + total.brk_growth, reverse=True)
    large = sum(total.size + total.brk_growth >= view.min_bytes for total in totals)
    rows = min(large, view.top) if view.show_all else 0
    return Selection(
        leaks=tuple(leaks[: view.top]),
        undecided=tuple(undecided[: view.top]),
        others=tuple(others[: view.top]),
        accepted=tuple(accepted[: view.top]),
        threads=tuple(totals[:rows]),
        hidden=tuple(hidden),
        left_out=_added(report.left_out, hidden, totals[rows:]),
    )


def _added(before: LeftOut, findings: Sequence[Finding], threads: Sequence[ThreadTotal]) -> LeftOut:
    return LeftOut(
        findings=before.findings + len(findings),
        leaks=before.leaks + sum(finding.leak for finding in findings),
        size=before.size + sum(finding.size for finding in findings),
        threads=before.threads + len(threads),
        threads_size=before.threads_size + sum(total.owned for total in threads),
    )


def _wanted(finding: Finding, view: View) -> bool:
    return (finding.leak or finding.undecided or view.show_all) and finding.size >= view.min_bytes


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
