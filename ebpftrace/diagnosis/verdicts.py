# SPDX-License-Identifier: Apache-2.0
"""The rules in their order, and from their judgements to findings."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Optional

from ebpftrace.diagnosis import orphaned_mapping, unjoined
from ebpftrace.diagnosis.abandoned_stack import ABANDONED_STACK
from ebpftrace.diagnosis.abandoned_stack import kind_of as stack_kind
from ebpftrace.diagnosis.cases import Case, Facts, collect_cases
from ebpftrace.diagnosis.evidence import NS, Diagnosis, Evidence
from ebpftrace.diagnosis.growing_threads import growing_threads
from ebpftrace.diagnosis.growth import keeps_growing
from ebpftrace.diagnosis.just_exited import JUST_EXITED
from ebpftrace.diagnosis.lost_mapping import lost_mappings
from ebpftrace.diagnosis.malloc_arena import MALLOC_ARENA
from ebpftrace.diagnosis.origin import libc_of, loaded_allocator
from ebpftrace.diagnosis.orphaned_mapping import ORPHANED_MAPPING
from ebpftrace.diagnosis.period import period, waves
from ebpftrace.diagnosis.reach import is_overlooked, reached, stale_kinds, state_of
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.diagnosis.stack_cache import STACK_CACHE, overflowing_places
from ebpftrace.diagnosis.unjoined import UNJOINED
from ebpftrace.model import BooksState, Finding, Orphan, Search, Site, Stack
from ebpftrace.text import duration
from ebpftrace.text import period as in_words

RULES = (
    MALLOC_ARENA,
    JUST_EXITED,
    UNJOINED,
    ABANDONED_STACK,
    STACK_CACHE,
    ORPHANED_MAPPING,
)
"""Every orphan falls to the first that claims it; the last claims whatever is left.

What needs no age comes first; then what is too young is set aside; what is proved comes before what is
only possible: a stack is the cache's only when neither the lists, the search nor its origin say otherwise.
"""

_NUMBERED = tuple(enumerate(RULES))
_NOT_OF_STACKS = tuple((number, rule) for number, rule in _NUMBERED if not rule.only_stacks)

_SPREAD = 0.5
"""Part of the window over which they must have come to show a rate: a burst has none."""
_LEAST_OF_A_RATE = 3
_SHORTEST_RATED = NS
"""What a shorter window shows says nothing of a minute."""

_PER_MINUTE = 60 * NS
_SITES_TOLD = 3
"""Of one finding, by their stacks."""
_MISSED = 2
"""Intervals without another one after which it has stopped."""

_GroupKey = tuple[int, bool, bool, Optional[int], Optional[SiteKey], Hashable]
"""Number of the rule, conflict, before attach, start routine, place, what the rule splits by."""


@dataclass(frozen=True)
class _Group:
    cases: list[Case]
    conflict: bool
    judgement: Judgement


def diagnose(evidence: Evidence) -> Diagnosis:
    """Judge every orphan exactly once; findings come leaks first, then by bytes."""
    collected = collect_cases(evidence)
    orphans, kept = collected.orphans, collected.kept
    search = _search(evidence, (*orphans, *kept))
    orphans, kept = _with_reach(orphans, search), _with_reach(kept, search)
    context = _context(evidence, orphans, search)
    context = replace(context, joining=_joining(evidence.awaited, (*orphans, *collected.live_stacks)))
    groups = _grouped(orphans, context)
    del orphans  # a reference to each of a hundred thousand
    groups += [_Group(cases, False, judgement) for cases, judgement in lost_mappings(kept, context)]
    growing = growing_threads(collected.live_stacks, context)
    groups += [_Group(cases, False, judgement) for cases, judgement in growing]
    undecided = sum(len(group.cases) for group in groups if group.judgement.undecided)
    findings = [_finding(group, context) for group in groups]
    findings.sort(key=lambda finding: (not finding.leak, -finding.size, finding.verdict.value))
    notes = (*_books_note(evidence), *collected.notes, *_search_notes(search))
    return Diagnosis(tuple(findings), notes, undecided, search)


def _search(evidence: Evidence, cases: Sequence[Case]) -> Search:
    suspects = [suspect for suspect in (case.suspect for case in cases) if suspect is not None]
    if evidence.target_exited_at is not None or not suspects:
        return Search()
    return evidence.search(suspects)


def _with_reach(cases: list[Case], search: Search) -> list[Case]:
    """With what the search says of each; without those that were joined or unmapped while it went on."""
    if search.gone:
        cases = [case for case in cases if case.suspect not in search.gone]
    if not search.reach:
        return cases
    return [
        case if suspect is None else case._replace(reach=search.reach.get(suspect))
        for case, suspect in ((case, case.suspect) for case in cases)
    ]


def _context(evidence: Evidence, cases: Sequence[Case], search: Search) -> Context:
    booked = [(case.facts.booked.descriptor, case.facts.exited_at) for case in cases if case.facts.booked]
    exits = ((descriptor, exited_at) for descriptor, exited_at in booked if exited_at is not None)
    context = Context(
        evidence,
        libc_of(evidence.books),
        allocator=loaded_allocator(evidence.vmas),
        search=search,
        overlooked=is_overlooked(search.reach.values(), search),
        history=evidence.history.with_exits(exits),
        only_place=_only_places(cases),
    )
    context = replace(context, overflowing=overflowing_places(cases, context))
    states = [(_kind_of(case, context), state_of(case, context)) for case in cases]
    return replace(context, stale=stale_kinds(states))


def _only_places(cases: Sequence[Case]) -> dict[int, SiteKey]:
    """By start routine, the place that created the threads, where the trace saw just one."""
    places: dict[int, set[SiteKey]] = defaultdict(set)
    for case in cases:
        if case.facts.booked is not None and case.facts.stack.frames:
            places[case.facts.booked.start_routine].add(case.facts.place)
    return {routine: next(iter(seen)) for routine, seen in places.items() if len(seen) == 1}


def _joining(awaited: Sequence[int], cases: Iterable[Case]) -> frozenset[Hashable]:
    """Who created threads that were being joined: a joiner sleeps at a futex in the descriptor of the other.

    That lies above the stack that the clone call was given, with what else glibc and musl keep there.
    """
    addresses = sorted(awaited)
    creators: set[Hashable] = set()
    for case in cases if addresses else ():
        run = case.outstanding.run
        if run is None or not case.facts.is_stack or not case.mapping.pieces:
            continue
        first = bisect_left(addresses, run.stack_byte)
        if first < len(addresses) and addresses[first] < case.mapping.end:
            creators |= unjoined.creators(case, case.facts.place)
    return frozenset(creators)


def _kind_of(case: Case, context: Context) -> Hashable:
    """What belongs together in the eyes of the rule that will judge it."""
    if unjoined.claims(case, context):
        return unjoined.kind_of(case, context)
    return stack_kind(case) if case.facts.is_stack else orphaned_mapping.kind_of(case)


def _search_notes(search: Search) -> tuple[str, ...]:
    return tuple(f"not searched: {gap}" for gap in search.gaps) if search.reach else ()


def _books_note(evidence: Evidence) -> tuple[str, ...]:
    books = evidence.books
    if books.state is BooksState.READ:
        return (f"glibc's thread lists: {books.why}",) if books.why else ()
    reason = f": {books.why}" if books.why else ""
    if books.state is BooksState.UNSTABLE:
        return (f"glibc's thread lists changed under every reading{reason}",)
    return (f"there are no thread lists of glibc to show which threads were joined{reason}",)


def _grouped(cases: Sequence[Case], context: Context) -> list[_Group]:
    groups: dict[_GroupKey, list[Case]] = defaultdict(list)
    group: list[Case] = []
    same: Optional[tuple[int, Hashable, Facts]] = None
    for case in cases:
        facts = case.facts
        number, rule = _first_claim(case, context)
        split = rule.split(case, context)
        if same is None or facts is not same[2] or number != same[0] or split != same[1]:
            same = number, split, facts
            routine = facts.booked.start_routine if facts.booked is not None else None
            place = facts.place if rule.by_place else None
            before = facts.before_attach
            if rule is UNJOINED:
                # Those from before the trace belong to the traced ones of the same cause.
                place, before = unjoined.kind_of(case, context)[1], False
            group = groups[number, bool(facts.occupant), before, routine, place, split]
        group.append(case)
    return [_Group(members, key[1], RULES[key[0]].judge(members, context)) for key, members in groups.items()]


def _first_claim(case: Case, context: Context) -> tuple[int, Rule]:
    for numbered in _NUMBERED if case.facts.is_stack else _NOT_OF_STACKS:
        if numbered[1].claims(case, context):
            return numbered
    raise AssertionError("the last rule claims whatever is left")


def _finding(group: _Group, context: Context) -> Finding:
    cases, judgement = group.cases, group.judgement
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
    before = sum(case.facts.before_attach for case in cases) if context.window else len(cases)
    interval = _lasting_period(began, exits, context)
    batch = 1 if interval is None else _batch(began)
    rate = None if before == len(cases) else _rate(cases, began, interval, context)
    if interval is None:
        interval = _lasting_period(exits, exits, context)
        batch = 1 if interval is None else _batch(exits)
    del began  # as long as the cases
    evidence += _exited(before, len(cases), exits, context) + _regularity(interval, batch)
    sites = _sites(cases)
    stack = sites[0].stack if sites else first.stack
    reach = reached(cases, context.search)
    return Finding(
        verdict=judgement.verdict,
        leak=leak,
        evidence=tuple(evidence),
        advice="run it again: threads came or went while it was read" if group.conflict else judgement.advice,
        before_attach=before == len(cases),
        orphans=_used_up(cases),
        bytes_per_minute=rate,
        stack=stack,
        start_routine=context.evidence.name_of(first.booked.start_routine)
        if first.booked is not None
        else None,
        period=interval,
        batch=batch,
        certainty=judgement.certainty,
        reach=reach,
        undecided=judgement.undecided and not group.conflict,
        sites=tuple(sites[:_SITES_TOLD]),
        more_sites=len(sites[_SITES_TOLD:]),
    )


def _sites(cases: Sequence[Case]) -> list[Site]:
    """The places that they come from, as far as their stacks are known, most cases first."""
    stacks: dict[SiteKey, Stack] = {}
    numbers: Counter[SiteKey] = Counter()
    sizes: Counter[SiteKey] = Counter()
    for case in cases:
        place, stack = case.facts.place, case.facts.stack
        if stack.frames:
            stacks.setdefault(place, stack)
            numbers[place] += 1
            sizes[place] += case.mapping.size
    sites = [Site(stack, numbers[place], sizes[place]) for place, stack in stacks.items()]
    return sorted(sites, key=lambda site: (-site.count, -site.size))


def _used_up(cases: list[Case]) -> tuple[Orphan, ...]:
    """The orphans as the report shows them; each takes the place in memory of its case."""
    orphans = []
    while cases:
        orphans.append(cases.pop().orphan)
    orphans.reverse()
    return tuple(orphans)


def _regularity(interval: Optional[float], batch: int) -> list[str]:
    if interval is None:
        return []
    each = "one" if batch == 1 else f"{batch} at once"
    return [f"they come regularly: {each} every {in_words(interval)}"]


def _batch(times: Sequence[int]) -> int:
    """How many come together, in the usual case."""
    return Counter(len(wave) for wave in waves(times)).most_common(1)[0][0]


def _known(times: Iterable[Optional[int]]) -> list[int]:
    return [at for at in times if at is not None]


def _exited(before: int, number: int, exits: Sequence[int], context: Context) -> list[str]:
    if before == number:
        return ["exited before the trace began"] if context.window else []
    lines = [f"{before} of them exited before the trace began"] if before else []
    if not exits or context.age(max(exits)) < 0:
        return lines
    oldest, youngest = (duration(context.age(at) / NS) for at in (min(exits), max(exits)))
    owners = "the owner" if len(exits) == 1 else "the owners"
    when = oldest if oldest == youngest else f"between {oldest} and {youngest}"
    end = "the report" if context.evidence.target_exited_at is None else "the process ended"
    return [*lines, f"{owners} exited {when} before {end}"]


def _lasting_period(times: Sequence[int], exits: Sequence[int], context: Context) -> Optional[float]:
    """Seconds from one to the next; None unless they still came at the end, as far as exits can be judged."""
    interval = period(times)
    quiet = context.age(max(exits)) - context.evidence.min_age if exits else 0
    return interval if interval is not None and quiet <= _MISSED * interval * NS else None


def _rate(
    cases: Sequence[Case], began: Sequence[int], interval: Optional[float], context: Context
) -> Optional[float]:
    """Bytes per minute of what the window left behind; None where they did not come all through it.

    ``began``: when each of them did, where it is known, ascending.  ``interval``: seconds from one to the
    next, where they came regularly to the end.  Unless the target has ended or was searched, an owner needs
    ``min_age`` to count as exited, so the window ends that much earlier.  It is never more than VIRT grew by.
    """
    counts_at_once = context.ended or all(case.reach is not None for case in cases)
    end = context.evidence.judged_at - (0 if counts_at_once else context.evidence.min_age)
    window = end - context.evidence.attached_at
    made = [(case.mapping.made_at, case.mapping.size) for case in cases if case.mapping.made_at is not None]
    if window < _SHORTEST_RATED or len(made) < _LEAST_OF_A_RATE or not began:
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
