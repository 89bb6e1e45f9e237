# SPDX-License-Identifier: Apache-2.0
"""The first lines of a report: is there a leak, how large, how fast does it grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace import frames
from ebpftrace.model import Certainty, Finding, Losses, Report, UnjoinedBefore, Verdict
from ebpftrace.text import count, duration, period, plural, rate, size

_MAX_ROUTINES = 5
_MAX_OF_IT = 0.5
_MIN_GROWTH = 1 << 20
"""Bytes of VIRT: less comes and goes in any program."""


class Tone(Enum):
    """The meaning of a line of the verdict."""

    LEAK = "leak"
    UNSURE = "unsure"
    CLEAN = "clean"


def verdict_lines(report: Report) -> list[tuple[Tone, str]]:
    """The verdict on a report, with a line each for leaks, for what cannot be judged, and for lost events.

    It covers all findings, also those that a view hides.
    """
    lines = [(Tone.LEAK, line) for line in report_lines(report)]
    undecided = [line for line in (undecided_line(report.findings), unlisted_line(report)) if line]
    if undecided:
        lines += [(Tone.UNSURE, line) for line in undecided]
    elif not lines:
        lines.append((Tone.UNSURE if report.losses.may_hide else Tone.CLEAN, no_leak_line(report)))
    accepted = accepted_line(report.findings)
    if accepted:
        lines.append((Tone.CLEAN, accepted))
    lost = lost_line(report.losses)
    if lost:
        meaning = "what is shown is mapped, but more may leak"
        if not report.losses.may_hide:
            meaning = "their callers are not known, but no mapping was missed"
        lines.append((Tone.UNSURE, f"{lost}; {meaning}"))
    return lines


def report_lines(report: Report) -> list[str]:
    """One line for each kind of leak of a report, and which part of VIRT's growth they explain.

    Covers all findings, also those that a view hides.
    """
    lines = leak_lines(report.findings, report.ended_by.by_target)
    if lines:
        lines[-1] += _explained(report)
    return lines


def leak_lines(findings: Iterable[Finding], ended: bool = False) -> list[str]:
    """One line for each kind of leak, largest first; empty where there is none.  ``ended``: the target is."""
    kinds: dict[Verdict, list[Finding]] = {}
    for finding in findings:
        if finding.fails:
            kinds.setdefault(finding.verdict, []).append(finding)
    largest_first = sorted(kinds.values(), key=_bytes, reverse=True)
    mapped = "mapped when the target ended" if ended else "still mapped"
    return [
        f"LEAK ({_certainty(group)}): {_what(group, mapped)}{_pace(group)}{_routines(group)}"
        for group in largest_first
    ]


def _certainty(findings: Sequence[Finding]) -> str:
    """The certainty of most of their bytes, but at most the highest of any finding."""
    order = (Certainty.POSSIBLE, Certainty.LIKELY, Certainty.PROVED)
    return min((finding.certainty for finding in findings), key=order.index).value


def _explained(report: Report) -> str:
    """Return the share of the growth of VIRT that the leaks of the window explain."""
    part = _explained_part(report)
    if part is None:
        return ""
    start, end = report.memory.virt_start or 0, report.memory.virt_end or 0
    return f"; explains {100 * part:.0f} % of VIRT's +{size(end - start)}"


class NextStep(NamedTuple):
    """A command that finds out more, and what it finds out."""

    command: str
    finds: str


def next_step(report: Report) -> Optional[NextStep]:
    """Return the next step if VIRT or RSS grew and leaks explain less than half of the growth."""
    command = f"ebpftrace growth -p {report.target.pid}"
    part = _explained_part(report)
    virt_grew = part is not None and part < _MAX_OF_IT
    if _rss_grew_otherwise(report, virt_grew):
        return NextStep(f"{command} --rss", "which code fills memory: RSS grows, and no leak explains it")
    if virt_grew:
        return NextStep(command, "which calls make VIRT grow: no leak explains it")
    return None


def _rss_grew_otherwise(report: Report, virt_grew: bool) -> bool:
    """RSS grew, which no leak explains, and at least by half as much as VIRT, if that grew otherwise too."""
    memory = report.memory
    if memory.rss_start is None or memory.rss_end is None:
        return False
    if report.seconds <= 0 or report.ended_by.by_target:
        return False
    grown = memory.rss_end - memory.rss_start
    if grown < _MIN_GROWTH:
        return False
    if virt_grew and memory.virt_start is not None and memory.virt_end is not None:
        return grown >= _MAX_OF_IT * (memory.virt_end - memory.virt_start)
    leaked = sum(
        (finding.rss or 0) - (finding.older.rss or 0)
        for finding in report.findings
        if finding.leak and not finding.before_attach
    )
    return leaked < _MAX_OF_IT * grown


def _explained_part(report: Report) -> Optional[float]:
    """The part of VIRT's growth over the window that leaks made in it explain, at most 1.

    None where VIRT did not grow by a megabyte, or is not known.
    """
    start, end = report.memory.virt_start, report.memory.virt_end
    if start is None or end is None or report.seconds <= 0 or report.ended_by.by_target:
        return None
    if end - start < _MIN_GROWTH:
        return None
    made = sum(
        finding.size - finding.older.size
        for finding in report.findings
        if finding.leak and not finding.before_attach
    )
    return min(1.0, made / (end - start))


def unlisted_line(report: Report) -> str:
    """Return the line on threads that could not be judged because the fate of their stacks is unknown."""
    number = report.undecided - sum(finding.count for finding in report.findings if finding.undecided)
    if number <= 0 or report.left_out.findings:
        return ""
    return (
        f"CANNOT TELL: {plural(number, 'thread')} exited; whether their stacks are leaked is known neither "
        "from glibc's thread lists nor, with --threads-only, from system calls"
    )


def undecided_line(findings: Iterable[Finding]) -> str:
    """A line about what could not be judged; empty if everything could."""
    undecided = [finding for finding in findings if finding.undecided and finding.accepted is None]
    number = sum(finding.count for finding in undecided)
    if not number:
        return ""
    stacks = all(finding.verdict.of_stacks or finding.verdict is Verdict.JUST_EXITED for finding in undecided)
    what = plural(number, "stack" if stacks else "mapping")
    owners = "an exited thread" if number == 1 else "exited threads"
    total = size(_bytes(undecided))
    return (
        f"CANNOT TELL: {what} of {owners}, {total}: whether {'it is' if number == 1 else 'they are'} leaked"
    )


def no_leak_line(report: Report) -> str:
    """The verdict on a report without a leak, no stronger than what was seen."""
    leak = "new leak" if any(finding.leak for finding in report.findings) else "leak"
    if report.seconds > 0:
        verdict = f"No {leak} seen in {duration(report.seconds)}"
    else:
        verdict = f"No {leak} seen; nothing was traced, so of mappings only stacks of threads were judged"
    if report.losses.may_hide:
        verdict += ", but not everything could be recorded (see LOST): this proves nothing"
    waiting = sum(
        finding.count
        for finding in report.findings
        if finding.verdict is Verdict.NOT_JOINED_YET and not finding.undecided
    )
    if waiting and report.seconds <= 0:
        exited = plural(waiting, "thread has exited and is", "threads have exited and are")
        verdict += f"; {exited} not joined so far"
    fresh = sum(
        finding.count
        for finding in report.findings
        if finding.verdict is Verdict.JUST_EXITED and not finding.undecided
    )
    if fresh and not report.ended_by.by_target:
        verdict += f"; the owner of {plural(fresh, 'mapping')} exited just before the report: run it again"
    return verdict


def accepted_line(findings: Iterable[Finding]) -> str:
    """A line about findings that are accepted; empty if there are none."""
    accepted = [finding for finding in findings if finding.accepted is not None]
    if not accepted:
        return ""
    number = plural(sum(finding.count for finding in accepted), "mapping")
    suppressed = sum(finding.is_suppressed for finding in accepted)
    ways = ((suppressed, "suppressed"), (len(accepted) - suppressed, "in the baseline"))
    how = ", ".join(f"{count(findings)} {way}" for findings, way in ways if findings)
    return f"Accepted: {number}, {size(_bytes(accepted))}, in {plural(len(accepted), 'finding')} ({how})"


def unjoined_before_line(before: UnjoinedBefore) -> str:
    """A line about threads that were exited and unjoined when the trace began; empty if there were none."""
    if not before.threads:
        return ""
    threads = plural(before.threads, "thread has exited and is", "threads have exited and are")
    named = Counter({frames.name(frame): number for frame, number in before.routines if frame is not None})
    return (
        f"before the trace: {threads} not joined so far, {size(before.size)} of stacks{ran(named)}; "
        "the report will say whether they still can be"
    )


def lost_line(losses: Losses) -> str:
    """A conspicuous line about what could not be recorded; empty on a good run."""
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
    if verdict is Verdict.GROWING_THREADS:
        return f"{plural(number, 'live thread')} of one place and ever more of them: {total} of stacks"
    if verdict is Verdict.LOST_MAPPING:
        return f"nothing points into {plural(number, 'mapping')} any more: {total} {mapped}"
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
        return f"{growth}, {every(regular[0])}"
    return growth


def every(finding: Finding) -> str:
    """Return the rate of a finding with a period: ``one every 60 s``, ``8 at once every 1 s``."""
    each = "one" if finding.batch == 1 else f"{count(finding.batch)} at once"
    return f"{each} every {period(finding.period or 0)}"


def _routines(findings: Sequence[Finding]) -> str:
    """Return the start routines of exited threads if no finding has a stack that names the code."""
    ran_by: Counter[str] = Counter()
    for finding in findings:
        if finding.start_routine is None or not finding.before_attach:
            return ""
        ran_by[frames.name(finding.start_routine)] += finding.count
    return ran(ran_by)


def ran(routines: Counter[str]) -> str:
    """Return the start routines with their counts, the largest first: ``; they ran minute_job (27,842)``."""
    if not routines:
        return ""
    who = "it" if sum(routines.values()) == 1 else "they"
    names = [f"{name} ({count(number)})" for name, number in routines.most_common(_MAX_ROUTINES)]
    more = f" and {len(routines) - _MAX_ROUTINES} more" if len(routines) > _MAX_ROUTINES else ""
    return f"; {who} ran {', '.join(names)}{more}"


def _bytes(findings: Sequence[Finding]) -> int:
    return sum(finding.size for finding in findings)


def title(findings: Sequence[Finding]) -> str:
    """Findings of one verdict in figures, as far as known: ``27,840 stacks, 272.0 GiB, RSS 217.5 MiB``.

    Where some of it is in swap, ``, 12.0 MiB in swap`` follows.
    """
    number = sum(finding.count for finding in findings)
    known = [finding.rss for finding in findings if finding.rss is not None]
    things = plural(number, "stack" if findings[0].verdict.of_stacks else "mapping")
    resident = f", RSS {size(sum(known))}" if known else ""
    swapped = sum(finding.swap for finding in findings)
    in_swap = f", {size(swapped)} in swap" if swapped else ""
    return f"{things}, {size(_bytes(findings))}{resident}{in_swap}"
