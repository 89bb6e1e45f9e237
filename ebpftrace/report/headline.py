"""The first lines of a report: is there a leak, how large, how fast does it grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ebpftrace import frames
from ebpftrace.model import Finding, Losses, Report, Verdict
from ebpftrace.text import count, duration, period, plural, rate, size

_MOST_ROUTINES = 5


def leak_lines(report: Report) -> list[str]:
    """One line for each kind of leak, largest first; empty where there is none.

    Speaks of all findings, whatever a view hides.
    """
    kinds: dict[Verdict, list[Finding]] = {}
    for finding in report.findings:
        if finding.leak:
            kinds.setdefault(finding.verdict, []).append(finding)
    largest_first = sorted(kinds.values(), key=_bytes, reverse=True)
    mapped = "mapped when the target ended" if report.ended_by.by_target else "still mapped"
    return [
        f"LEAK: {_what(findings, mapped)}{_pace(findings)}{_routines(findings)}" for findings in largest_first
    ]


def no_leak_line(report: Report) -> str:
    """The verdict on a report without a leak, no stronger than what was seen."""
    if report.seconds > 0:
        verdict = f"No leak seen in {duration(report.seconds)}"
    else:
        verdict = "No leak seen; nothing was traced"
    if report.losses.may_hide:
        verdict += ", but not everything could be recorded (see LOST): this proves nothing"
    fresh = sum(finding.count for finding in report.findings if finding.verdict is Verdict.JUST_EXITED)
    if fresh and not report.ended_by.by_target:
        verdict += f"; the owner of {plural(fresh, 'mapping')} exited just before the report: look again"
    if report.undecided:
        stacks = plural(report.undecided, "stack")
        verdict += f"; the target ended before {stacks} of exited threads could be judged: report earlier"
    return verdict


def lost_line(losses: Losses) -> str:
    """What could not be recorded, said loudly; empty on a good run."""
    if not losses.any:
        return ""
    kinds = (
        (losses.events, "event"),
        (losses.mappings, "mapping"),
        (losses.stacks, "stack"),
        (losses.threads, "thread birth"),
    )
    lost = ", ".join(plural(number, noun) for number, noun in kinds if number)
    return f"LOST: {lost} could not be recorded"


def _what(findings: Sequence[Finding], mapped: str) -> str:
    number = sum(finding.count for finding in findings)
    one = number == 1
    total = size(_bytes(findings))
    verdict = findings[0].verdict
    if verdict is Verdict.NEVER_JOINED:
        stacks = "its stack" if one else "their stacks"
        return (
            f"{plural(number, 'thread')} exited and {'was' if one else 'were'} never joined: "
            f"{total} of {stacks} {mapped}"
        )
    if verdict is Verdict.ABANDONED_STACK:
        return (
            f"{plural(number, 'stack')} left behind by {'an exited thread' if one else 'exited threads'}: "
            f"{total} {mapped}"
        )
    owner = "the thread that owned it" if one else "the threads that owned them"
    return f"{plural(number, 'mapping')} outlived {owner}: {total} {mapped} ({verdict.value})"


def _pace(findings: Sequence[Finding]) -> str:
    growing = [finding.bytes_per_minute for finding in findings if finding.bytes_per_minute]
    growth = f", growing by {rate(sum(growing))}" if growing else ""
    regular = [finding for finding in findings if finding.period is not None]
    if len(regular) == 1 and regular[0].period is not None:
        return f"{growth}, one every {period(regular[0].period)}"
    return growth


def _routines(findings: Sequence[Finding]) -> str:
    """What exited threads ran, where no finding has a stack that names the code."""
    ran_by: Counter[str] = Counter()
    for finding in findings:
        if finding.start_routine is None or not finding.before_attach:
            return ""
        ran_by[frames.name(finding.start_routine)] += finding.count
    return ran(ran_by)


def ran(routines: Counter[str]) -> str:
    """What so many exited threads ran, by name, most of them first: ``; they ran minute_job (27,842)``."""
    who = "it" if sum(routines.values()) == 1 else "they"
    names = [f"{name} ({count(number)})" for name, number in routines.most_common(_MOST_ROUTINES)]
    more = f" and {len(routines) - _MOST_ROUTINES} more" if len(routines) > _MOST_ROUTINES else ""
    return f"; {who} ran {', '.join(names)}{more}"


def _bytes(findings: Sequence[Finding]) -> int:
    return sum(finding.size for finding in findings)


def title(findings: Sequence[Finding]) -> str:
    """Findings of one verdict in figures, as far as known: ``27,840 stacks, 272.0 GiB, RSS 217.5 MiB``."""
    number = sum(finding.count for finding in findings)
    known = [finding.rss for finding in findings if finding.rss is not None]
    stack = findings[0].verdict in (Verdict.NEVER_JOINED, Verdict.ABANDONED_STACK, Verdict.STACK_CACHE)
    things = plural(number, "stack" if stack else "mapping")
    resident = f", RSS {size(sum(known))}" if known else ""
    return f"{things}, {size(_bytes(findings))}{resident}"
