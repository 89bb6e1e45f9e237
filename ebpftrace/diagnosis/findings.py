# SPDX-License-Identifier: Apache-2.0
"""From a group of orphans that were judged together to a finding: sites, regularity, rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.reach import reached
from ebpftrace.diagnosis.rule import Context, Judgement
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.diagnosis.timeseries import keeps_growing, period, waves
from ebpftrace.model import Finding, Site, Stack
from ebpftrace.text import duration
from ebpftrace.text import period as in_words

_SPREAD = 0.5
"""Orphans have a rate only if they were made over this part of the window; a burst has none."""
_MIN_FOR_RATE = 3
_MIN_WINDOW_FOR_RATE = NS
"""ns; a shorter window shows nothing about a minute."""

_PER_MINUTE = 60 * NS
_MAX_SITES = 3
"""Sites that a finding names."""
_MISSED = 2
"""After so many intervals without another orphan, a regular series has stopped."""


@dataclass(frozen=True)
class Group:
    """Orphans that make one finding, and the judgement on them."""

    cases: list[Case]
    judgement: Judgement
    conflict: bool = False
    """A live thread runs on each of them all the same."""


def finding_of(group: Group, context: Context) -> Finding:
    """Turn a judged group into a finding; its orphans are ordered by age, then by address."""
    cases = sorted(group.cases, key=attrgetter("outstanding.mapping.pieces"))
    cases.sort(key=lambda case: case.began_at or -1)
    first, judgement = group.cases[0].facts, group.judgement
    evidence = list(judgement.evidence)
    if group.conflict:
        evidence.append(f"conflicting evidence: {first.occupant} is on it, so it is not called a leak")
    began = _known(case.began_at for case in cases)
    exits = _known(case.facts.exited_at for case in cases)
    before = sum(case.facts.before_attach for case in cases) if context.window else len(cases)
    interval = _lasting_period(began, exits, context)
    batch = 1 if interval is None else _batch(began)
    rate = None if before == len(cases) else _rate(cases, began, interval, context)
    if interval is None:
        interval = _lasting_period(exits, exits, context)
        batch = 1 if interval is None else _batch(exits)
    evidence += _exited(before, len(cases), exits, context) + _regularity(interval, batch)
    sites = _sites(cases)
    routine = first.listed.start_routine if first.listed is not None else None
    return Finding(
        verdict=judgement.verdict,
        leak=judgement.leak and not group.conflict,
        evidence=tuple(evidence),
        advice="run it again: threads came or went while it was read" if group.conflict else judgement.advice,
        before_attach=before == len(cases),
        orphans=tuple(case.orphan for case in cases),
        bytes_per_minute=rate,
        stack=sites[0].stack if sites else first.stack,
        start_routine=context.evidence.name_of(routine) if routine is not None else None,
        period=interval,
        batch=batch,
        certainty=judgement.certainty,
        reach=reached(cases, context.search),
        undecided=judgement.undecided and not group.conflict,
        sites=tuple(sites[:_MAX_SITES]),
        more_sites=len(sites[_MAX_SITES:]),
    )


def _sites(cases: Sequence[Case]) -> list[Site]:
    """The sites whose call stacks are known: complete ones first, then the one with most orphans."""
    stacks: dict[SiteKey, Stack] = {}
    numbers: Counter[SiteKey] = Counter()
    sizes: Counter[SiteKey] = Counter()
    for case in cases:
        site, stack = case.facts.site, case.facts.stack
        if stack.frames:
            stacks.setdefault(site, stack)
            numbers[site] += 1
            sizes[site] += case.mapping.size
    sites = [Site(stack, numbers[site], sizes[site]) for site, stack in stacks.items()]
    return sorted(sites, key=lambda site: (not site.stack.complete, -site.count, -site.size))


def _regularity(interval: Optional[float], batch: int) -> list[str]:
    if interval is None:
        return []
    each = "one" if batch == 1 else f"{batch} at once"
    return [f"they come regularly: {each} every {in_words(interval)}"]


def _batch(times: Sequence[int]) -> int:
    """The most frequent number of orphans that come together."""
    return Counter(len(wave) for wave in waves(times)).most_common(1)[0][0]


def _known(times: Iterable[Optional[int]]) -> list[int]:
    return [at for at in times if at is not None]


def _exited(before: int, number: int, exits: Sequence[int], context: Context) -> list[str]:
    if before == number:
        return ["exited before the trace began"] if context.window else []
    # Others may have as well: those that the lists did not have yet and of which no exit was seen.
    least = "at least " if before + len(exits) < number else ""
    lines = [f"{least}{before:,} of them exited before the trace began"] if before else []
    if not exits or context.age(max(exits)) < 0:
        return lines
    oldest, youngest = (duration(context.age(at) / NS) for at in (min(exits), max(exits)))
    owners = "the owner" if len(exits) == 1 else "the owners"
    when = oldest if oldest == youngest else f"between {oldest} and {youngest}"
    end = "the report" if context.evidence.target_exited_at is None else "the process ended"
    return [*lines, f"{owners} exited {when} before {end}"]


def _lasting_period(times: Sequence[int], exits: Sequence[int], context: Context) -> Optional[float]:
    """Seconds from one orphan to the next; None if they are irregular or had stopped before the end.

    Exits of the last ``min_age`` can't be judged yet, so they are not expected to be there.
    """
    interval = period(times)
    quiet = context.age(max(exits)) - context.evidence.min_age if exits else 0
    return interval if interval is not None and quiet <= _MISSED * interval * NS else None


def _rate(
    cases: Sequence[Case], began: Sequence[int], interval: Optional[float], context: Context
) -> Optional[float]:
    """Bytes per minute that the window left behind; None unless orphans were made all through it.

    ``began`` are the known times at which they were made, ascending; ``interval`` is the seconds from one to
    the next if they came regularly to the end.  Unless the target has ended or was searched, an owner must
    have exited ``min_age`` ago to count, so the window ends that much earlier.  The result is at most what
    VIRT grew by.
    """
    counts_at_once = context.ended or all(case.reach is not None for case in cases)
    end = context.evidence.judged_at - (0 if counts_at_once else context.evidence.min_age)
    window = end - context.evidence.attached_at
    made = [(case.mapping.made_at, case.mapping.size) for case in cases if case.mapping.made_at is not None]
    if window < _MIN_WINDOW_FOR_RATE or len(made) < _MIN_FOR_RATE or not began:
        return None
    total = sum(size for _, size in made)
    if interval is not None:
        times = [at for at, _ in made]
        rounds = round((max(times) - min(times)) / (interval * NS)) + 1
        rate = total / rounds * 60 / interval
    elif began[-1] - began[0] >= _SPREAD * window or keeps_growing(began, end - window, end):
        rate = total * _PER_MINUTE / window
    else:
        return None
    growth = context.evidence.virt_growth
    if growth is None:
        return rate
    most = growth * _PER_MINUTE / max(context.window, 1)
    return min(rate, most) if most > 0 else None
