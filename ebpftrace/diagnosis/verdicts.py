# SPDX-License-Identifier: Apache-2.0
"""The rules in their order, and how each orphan gets its verdict."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Optional

from ebpftrace.diagnosis import orphaned_mapping, unjoined
from ebpftrace.diagnosis.abandoned_stack import ABANDONED_STACK
from ebpftrace.diagnosis.abandoned_stack import kind_of as stack_kind
from ebpftrace.diagnosis.cases import Case, collect_cases
from ebpftrace.diagnosis.evidence import Diagnosis, Evidence, no_search
from ebpftrace.diagnosis.findings import Group, finding_of
from ebpftrace.diagnosis.growing_threads import growing_threads
from ebpftrace.diagnosis.history import History
from ebpftrace.diagnosis.just_exited import JUST_EXITED
from ebpftrace.diagnosis.lost_mapping import lost_mappings
from ebpftrace.diagnosis.malloc_arena import MALLOC_ARENA
from ebpftrace.diagnosis.origin import libc_of, loaded_allocator
from ebpftrace.diagnosis.orphaned_mapping import ORPHANED_MAPPING
from ebpftrace.diagnosis.reach import is_overlooked, stale_kinds, state_of
from ebpftrace.diagnosis.rule import Context, Rule
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.diagnosis.stack_cache import STACK_CACHE, overflowing_sites
from ebpftrace.diagnosis.unjoined import UNJOINED
from ebpftrace.model import Frame, Interval, ReadState, Search, Stack, Suspect, ThreadLists
from ebpftrace.vmas import Vmas

RULES = (
    MALLOC_ARENA,
    JUST_EXITED,
    UNJOINED,
    ABANDONED_STACK,
    STACK_CACHE,
    ORPHANED_MAPPING,
)
"""The first rule that claims an orphan judges it; the last one claims every orphan.

The rule that does not depend on age comes first, then the one for exits that are too recent to judge; after
them, rules that can prove come before those that can only suspect: a stack counts as cached only if neither
glibc's lists nor the search nor its origin say otherwise.
"""


def diagnose(evidence: Evidence) -> Diagnosis:
    """Judge every orphan exactly once at the end of a trace; findings come leaks first, then by bytes."""
    collected = collect_cases(evidence)
    orphans, kept = collected.orphans, collected.kept
    suspects, kept_suspects = ([case.suspect for case in cases] for cases in (orphans, kept))
    search = _search(evidence, (*suspects, *kept_suspects))
    _take_reach(orphans, suspects, search)
    _take_reach(kept, kept_suspects, search)
    del suspects, kept_suspects
    notes = (*_lists_note(evidence), *collected.notes, *_search_notes(search))
    overlooked = is_overlooked(search.reach.values(), search)
    # The cases have it now; a hundred thousand suspects take 20 MB.
    search = replace(search, reach={}, gone=frozenset())
    context = _context(evidence, orphans, search, overlooked)
    context = replace(context, joining=_joining(evidence.awaited, (*orphans, *collected.live_stacks)))
    groups = _grouped(orphans, context)
    groups += [Group(cases, judgement) for cases, judgement in lost_mappings(kept, context)]
    groups += [
        Group(cases, judgement) for cases, judgement in growing_threads(collected.live_stacks, context)
    ]
    undecided = sum(len(group.cases) for group in groups if group.judgement.undecided)
    findings = [finding_of(group, context) for group in groups]
    findings.sort(key=lambda finding: (not finding.leak, -finding.size, finding.verdict.value))
    return Diagnosis(tuple(findings), notes, undecided, search)


def baseline_verdict(
    thread_lists: ThreadLists,
    vmas: Vmas,
    name_of: Callable[[int], Optional[Frame]],
    earlier: Optional[ThreadLists] = None,
    search: Callable[[Sequence[Suspect]], Search] = no_search,
    history: Optional[History] = None,
    stack_shaped: Sequence[Interval] = (),
) -> Diagnosis:
    """Judge one moment without a trace: exited, unjoined threads by start routine, leaks first, then by size.

    There are no findings unless the lists were READ.  ``thread_lists`` and ``vmas`` (with RSS where known)
    are of the same moment; ``name_of`` names a start routine.  ``earlier`` is a reading at least ``min_age``
    before; without a search, a thread that had not exited by then is "just exited".  ``history`` has both
    readings: a thread that left the lists in between was joined.  ``stack_shaped`` is as in ``Evidence``.
    """
    evidence = Evidence(
        outstanding=(),
        thread_lists=thread_lists,
        vmas=vmas,
        tgid=0,
        attached_at=0,
        report_at=0,
        name_of=name_of,
        earlier_lists=earlier,
        history=history or History(),
        search=search,
        stack_shaped=stack_shaped,
    )
    return diagnose(evidence)


def _search(evidence: Evidence, suspects: Sequence[Optional[Suspect]]) -> Search:
    wanted = [suspect for suspect in suspects if suspect is not None]
    if evidence.target_exited_at is not None or not wanted:
        return Search()
    return evidence.search(wanted)


def _take_reach(cases: list[Case], suspects: Sequence[Optional[Suspect]], search: Search) -> None:
    """Add what the search found to each case; drop cases that were joined or unmapped during the search.

    ``suspects`` are those of the cases, in their order.  In place, because a list of new cases would take as
    much memory again.
    """
    if search.reach:
        reach = search.reach.get
        for at, suspect in enumerate(suspects):
            if suspect is not None:
                cases[at] = cases[at]._replace(reach=reach(suspect))
    if search.gone:
        cases[:] = [case for case, suspect in zip(cases, suspects) if suspect not in search.gone]


def _context(evidence: Evidence, cases: Sequence[Case], search: Search, overlooked: bool) -> Context:
    exits = [
        (case.descriptor, case.facts.exited_at)
        for case in cases
        if case.descriptor is not None and case.facts.exited_at is not None
    ]
    context = Context(
        evidence,
        libc_of(evidence.thread_lists),
        allocator=loaded_allocator(evidence.vmas),
        search=search,
        overlooked=overlooked,
        history=evidence.history.with_exits(exits),
        only_site=_only_sites(cases),
    )
    context = replace(context, overflowing=overflowing_sites(cases, context))
    numbers = Counter(map(_deciding, cases))
    one_of_each = {_deciding(case): case for case in cases}
    states = (
        (_kind_of(case, context), state_of(case, context), numbers[deciding])
        for deciding, case in one_of_each.items()
    )
    return replace(context, stale=stale_kinds(states))


def _only_sites(cases: Sequence[Case]) -> dict[int, SiteKey]:
    """Map each start routine to the site that created its threads, if the trace saw exactly one.

    A stack that was cut, such as one that was not copied, does not count if it is the beginning of that one.
    """
    sites: dict[int, dict[SiteKey, Stack]] = defaultdict(dict)
    for case in cases:
        if case.facts.listed is not None and case.facts.stack.frames:
            sites[case.facts.listed.start_routine][case.facts.site] = case.facts.stack
    found = {}
    for routine, seen in sites.items():
        site, longest = max(seen.items(), key=lambda one: (one[1].complete, len(one[1].frames)))
        if all(other == site or _is_cut_off(stack, longest) for other, stack in seen.items()):
            found[routine] = site
    return found


def _is_cut_off(stack: Stack, whole: Stack) -> bool:
    """Whether a stack is the beginning of another one.

    Of a stack that was not copied the code in an interpreter is not known, so only frames in files count.
    """
    begins, frames = (tuple(frame for frame in one.frames if frame.module) for one in (stack, whole))
    return not stack.complete and bool(begins) and begins == frames[: len(begins)]


def _joining(awaited: Sequence[int], cases: Iterable[Case]) -> frozenset[Hashable]:
    """Return the creators of threads that were being joined when the target died.

    pthread_join sleeps at a futex in the descriptor of the other thread.  glibc and musl keep the descriptor
    above the stack that they pass to clone, in the same mapping.
    """
    addresses = sorted(awaited)
    creators: set[Hashable] = set()
    for case in cases if addresses else ():
        run = case.outstanding.run
        if run is None or not case.facts.is_stack or not case.mapping.pieces:
            continue
        first = bisect_left(addresses, run.stack_byte)
        if first < len(addresses) and addresses[first] < case.mapping.end:
            creators |= unjoined.creators(case, case.facts.site)
    return frozenset(creators)


def _kind_of(case: Case, context: Context) -> Hashable:
    """The kind of an orphan, as the rule that will judge it defines kinds."""
    if unjoined.claims(case, context):
        return unjoined.kind_of(case, context)
    return stack_kind(case) if case.facts.is_stack else orphaned_mapping.kind_of(case)


def _deciding(case: Case) -> tuple[int, Optional[bool]]:
    """What all rules decide by: cases that have it in common get the same verdict.

    For a thread on glibc's lists whose handle is not kept that is only its ``facts``, which are shared; there
    may be a hundred thousand.  Whether a kept handle is a stale copy depends on more.
    """
    reach = case.reach
    if case.facts.listed is not None and (reach is None or reach.lost):
        return id(case.facts), reach is None
    return id(case), None


def _search_notes(search: Search) -> tuple[str, ...]:
    return tuple(f"not searched: {gap}" for gap in search.gaps) if search.reach else ()


def _lists_note(evidence: Evidence) -> tuple[str, ...]:
    thread_lists = evidence.thread_lists
    if thread_lists.state is ReadState.READ:
        return (f"glibc's thread lists: {thread_lists.why}",) if thread_lists.why else ()
    reason = f": {thread_lists.why}" if thread_lists.why else ""
    if thread_lists.state is ReadState.UNSTABLE:
        return (f"glibc's thread lists changed under every reading{reason}",)
    return (f"there are no thread lists of glibc to show which threads were joined{reason}",)


def _grouped(cases: Sequence[Case], context: Context) -> list[Group]:
    """Group the orphans that make one finding, and let their rule judge each group."""
    groups: dict[tuple[Hashable, ...], tuple[Rule, list[Case]]] = {}
    decided: dict[tuple[int, Optional[bool]], list[Case]] = {}
    for case in cases:
        deciding = _deciding(case)
        members = decided.get(deciding)
        if members is None:
            rule = next(rule for rule in RULES if rule.claims(case, context))
            _, members = groups.setdefault(_group_key(case, rule, context), (rule, []))
            decided[deciding] = members
        members.append(case)
    return [
        Group(members, rule.judge(members, context), conflict=bool(members[0].facts.occupant))
        for rule, members in groups.values()
    ]


def _group_key(case: Case, rule: Rule, context: Context) -> tuple[Hashable, ...]:
    facts = case.facts
    routine = facts.listed.start_routine if facts.listed is not None else None
    site = facts.site if rule.by_site else None
    before_attach = facts.before_attach
    if rule is UNJOINED:
        # Threads that exited before the trace belong with the traced ones that have the same cause.
        site, before_attach = unjoined.kind_of(case, context)[1], False
    return rule, bool(facts.occupant), before_attach, routine, site, rule.split(case, context)
