"""The rules in their order, and from their judgements to findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Optional

from ebpftrace.diagnosis.abandoned_stack import ABANDONED_STACK
from ebpftrace.diagnosis.cases import Case, Facts, collect_cases
from ebpftrace.diagnosis.evidence import NS, Diagnosis, Evidence
from ebpftrace.diagnosis.joined_in_turn import JOINED_IN_TURN, routines_in_turn
from ebpftrace.diagnosis.just_exited import JUST_EXITED
from ebpftrace.diagnosis.malloc_arena import MALLOC_ARENA
from ebpftrace.diagnosis.never_joined import NEVER_JOINED
from ebpftrace.diagnosis.origin import libc_of, loaded_allocator
from ebpftrace.diagnosis.orphaned_mapping import ORPHANED_MAPPING
from ebpftrace.diagnosis.period import period
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.diagnosis.stack_cache import STACK_CACHE, overflowing_places
from ebpftrace.model import NO_STACK, BooksState, Finding, Orphan
from ebpftrace.text import duration
from ebpftrace.text import period as in_words

RULES = (
    MALLOC_ARENA,
    JUST_EXITED,
    JOINED_IN_TURN,
    NEVER_JOINED,
    ABANDONED_STACK,
    STACK_CACHE,
    ORPHANED_MAPPING,
)
"""Every orphan falls to the first that claims it; the last claims whatever is left.

What needs no age comes first; then what is too young is set aside; what is proved comes before what is
only possible: a stack is the cache's only when neither the books nor its origin say otherwise.
"""

_NUMBERED = tuple(enumerate(RULES))
_NOT_OF_STACKS = tuple((number, rule) for number, rule in _NUMBERED if not rule.only_stacks)

_SHORT = 10 * NS
"""A window shorter than this must have seen them come over half of it to tell their rate."""

_PER_MINUTE = 60 * NS
_MISSED = 2
"""Intervals without another one after which it has stopped."""

_GroupKey = tuple[int, bool, bool, Optional[int], Optional[SiteKey], Hashable]
"""Number of the rule, conflict, before attach, start routine, place, what the rule splits by."""


@dataclass(frozen=True)
class _Group:
    rule: Rule
    cases: list[Case]
    conflict: bool


def diagnose(evidence: Evidence) -> Diagnosis:
    """Judge every orphan exactly once; findings come leaks first, then by bytes."""
    cases, notes = collect_cases(evidence)
    context = Context(evidence, libc_of(evidence.books), allocator=loaded_allocator(evidence.vmas))
    context = replace(
        context,
        overflowing=overflowing_places(cases, context),
        in_turn=routines_in_turn(cases, context),
    )
    groups = _grouped(cases, context)
    del cases  # a reference to each of a hundred thousand
    judged = [(group, group.rule.judge(group.cases, context)) for group in groups]
    undecided = sum(len(group.cases) for group, judgement in judged if judgement.undecided)
    findings = [_finding(group, judgement, context) for group, judgement in judged]
    findings.sort(key=lambda finding: (not finding.leak, -finding.size, finding.verdict.value))
    return Diagnosis(tuple(findings), (*_books_note(evidence), *notes), undecided)


def _books_note(evidence: Evidence) -> tuple[str, ...]:
    books = evidence.books
    if books.state is BooksState.READ:
        return (f"glibc's books: {books.why}",) if books.why else ()
    reason = f": {books.why}" if books.why else ""
    if books.state is BooksState.UNSTABLE:
        return (f"glibc's books changed under every reading{reason}; never-joined threads can't be proved",)
    return (f"no books of glibc to prove never-joined threads by{reason}",)


def _grouped(cases: Sequence[Case], context: Context) -> list[_Group]:
    groups: dict[_GroupKey, list[Case]] = defaultdict(list)
    group: list[Case] = []
    alike: Optional[tuple[int, Hashable, Facts]] = None
    for case in cases:
        facts = case.facts
        number, rule = _first_claim(case, context)
        split = rule.split(case, context)
        if alike is None or facts is not alike[2] or number != alike[0] or split != alike[1]:
            alike = number, split, facts
            routine = facts.booked.start_routine if facts.booked is not None else None
            place = facts.place if rule.by_place else None
            group = groups[number, bool(facts.occupant), facts.before_attach, routine, place, split]
        group.append(case)
    return [_Group(RULES[key[0]], members, key[1]) for key, members in groups.items()]


def _first_claim(case: Case, context: Context) -> tuple[int, Rule]:
    for numbered in _NUMBERED if case.facts.is_stack else _NOT_OF_STACKS:
        if numbered[1].claims(case, context):
            return numbered
    raise AssertionError("the last rule claims whatever is left")


def _finding(group: _Group, judgement: Judgement, context: Context) -> Finding:
    cases = group.cases
    evidence = list(judgement.evidence)
    first = cases[0].facts
    leak = judgement.leak
    if group.conflict:
        leak = False
        evidence.append(f"conflicting evidence: {first.occupant} is on it, so it is not called a leak")
    # By age, then by address; one after the other, since a key of two would be an object for each.
    cases.sort(key=attrgetter("outstanding.mapping.pieces"))
    cases.sort(key=lambda case: case.began_at or -1)
    began = _known(case.began_at for case in cases)
    exits = _known(case.facts.exited_at for case in cases)
    interval = _lasting_period(began, exits, context)
    rate = None if first.before_attach else _rate(cases, began, interval, context)
    if interval is None:
        interval = _lasting_period(exits, exits, context)
    del began  # as long as the cases
    evidence += _exited(first, exits, context) + _regularity(interval)
    return Finding(
        verdict=group.rule.verdict,
        leak=leak,
        evidence=tuple(evidence),
        advice="look again: threads came or went while it was read" if group.conflict else judgement.advice,
        before_attach=first.before_attach,
        orphans=_used_up(cases),
        bytes_per_minute=rate,
        stack=first.stack if group.rule.by_place else NO_STACK,
        start_routine=context.evidence.name_of(first.booked.start_routine)
        if first.booked is not None
        else None,
        period=interval,
    )


def _used_up(cases: list[Case]) -> tuple[Orphan, ...]:
    """The orphans as the report shows them; each takes the place in memory of its case."""
    orphans = []
    while cases:
        orphans.append(cases.pop().orphan)
    orphans.reverse()
    return tuple(orphans)


def _regularity(interval: Optional[float]) -> list[str]:
    return [] if interval is None else [f"they come regularly: one, or one batch, every {in_words(interval)}"]


def _known(times: Iterable[Optional[int]]) -> list[int]:
    return [at for at in times if at is not None]


def _exited(first: Facts, exits: Sequence[int], context: Context) -> list[str]:
    if first.before_attach:
        return ["exited before the tracer came"]
    if not exits or context.age(max(exits)) < 0:
        return []
    oldest, youngest = (duration(context.age(at) / NS) for at in (min(exits), max(exits)))
    owners = "the owner" if len(exits) == 1 else "the owners"
    when = oldest if oldest == youngest else f"between {oldest} and {youngest}"
    end = "the report" if context.evidence.target_exited_at is None else "the process ended"
    return [f"{owners} exited {when} before {end}"]


def _lasting_period(times: Sequence[int], exits: Sequence[int], context: Context) -> Optional[float]:
    """Seconds from one to the next; None unless they still came at the end, as far as exits can be judged."""
    interval = period(times)
    quiet = context.age(max(exits)) - context.evidence.min_age if exits else 0
    return interval if interval is not None and quiet <= _MISSED * interval * NS else None


def _regular_rate(cases: Sequence[Case], interval: float) -> float:
    """Bytes per minute of what comes every ``interval`` seconds."""
    made = [(case.mapping.made_at, case.mapping.size) for case in cases if case.mapping.made_at is not None]
    times = [at for at, _ in made]
    batches = round((max(times) - min(times)) / (interval * NS)) + 1
    return sum(size for _, size in made) / batches * 60 / interval


def _rate(
    cases: Sequence[Case], began: Sequence[int], interval: Optional[float], context: Context
) -> Optional[float]:
    """Bytes per minute of what the window left behind; None where one, or a burst, says nothing of a minute.

    ``began``: when each of them did, where it is known, ascending.  ``interval``: seconds from one to the
    next, where they came regularly to the end.  An owner needs ``min_age`` to count as exited, so the window
    ends that much earlier.
    """
    end = context.evidence.judged_at - context.evidence.min_age
    window = end - context.evidence.attached_at
    if window <= 0:
        return None
    last = end if interval is not None else began[-1] if began else 0
    if window < _SHORT and began and last - began[0] < window / 2:
        return None
    born = [case.mapping.size for case in cases if case.mapping.made_at is not None]
    if len(born) <= 1:
        return None
    return sum(born) * _PER_MINUTE / window if interval is None else _regular_rate(cases, interval)
