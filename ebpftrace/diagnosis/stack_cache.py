# SPDX-License-Identifier: Apache-2.0
"""Stack cache: glibc keeps stacks of joined and detached threads, 40 MiB of them, for reuse.

nptl/nptl-stack.c: queue_stack puts a freed stack into the cache and unmaps the oldest ones until the
cache is within ``glibc.pthread.stack_cache_size``.  Stacks whose threads are still about to exit can't be
unmapped yet, so for moments it holds more; a bound of twice the limit leaves room for that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.just_exited import BEFORE_ITS_END, JUST_EXITED
from ebpftrace.diagnosis.origin import Libc, Origin, fills_mapping
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.glibc import STACK_CACHE_LIMIT
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import plural, size

_SLACK = 2

_ADVICE = "nothing to do; GLIBC_TUNABLES=glibc.pthread.stack_cache_size=BYTES bounds the cache"


def cache_limit(context: Context) -> int:
    """Bytes glibc's cache may hold."""
    limit = context.evidence.books.stack_cache_limit
    return STACK_CACHE_LIMIT if limit is None else limit


def _may_be_cached(case: Case, context: Context) -> bool:
    return (
        case.facts.is_stack
        and case.facts.booked is None
        and context.libc is not Libc.MUSL
        and case.facts.origin is not Origin.APPLICATION
        and fills_mapping(case.outstanding)
    )


def overflowing_places(cases: Sequence[Case], context: Context) -> frozenset[SiteKey]:
    """Places whose stacks can't all be in the cache: too many, and growing over the window.

    Only where glibc's own word does not stand against it: with its books read, a stack that glibc itself
    mapped and that is not in use is cached or gone.
    """
    suspects: dict[SiteKey, list[Case]] = defaultdict(list)
    for case in cases:
        if _may_be_cached(case, context) and not case.facts.cached and not JUST_EXITED.claims(case, context):
            if context.books_read and case.facts.origin is Origin.LIBC:
                continue
            suspects[case.facts.place].append(case)
    total = sum(case.mapping.size for group in suspects.values() for case in group)
    if total <= _SLACK * cache_limit(context):
        return frozenset()
    return frozenset(place for place, group in suspects.items() if context.keeps_growing(group))


def _claims(case: Case, context: Context) -> bool:
    return case.facts.cached or _may_be_cached(case, context)


def _split(case: Case, _context: Context) -> Hashable:
    return case.facts.cached


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    total = sum(case.mapping.size for case in cases)
    stacks = plural(len(cases), "stack")
    limit = f"the limit of glibc's stack cache is {size(cache_limit(context))}"
    verdict = Verdict.STACK_CACHE
    if cases[0].facts.cached:
        why = (
            f"{stacks}, {size(total)}, on glibc's list of cached stacks: kept for the next threads ({limit})"
        )
        return Judgement(verdict, False, (why,), _ADVICE, Certainty.PROVED)
    if context.cache_listed:
        why = (
            f"{stacks} neither in use nor cached by glibc's thread lists: taken or freed just now, or the "
            "application's own; not enough to call a leak"
        )
        longer = "trace longer: stacks of the application that pile up will show"
        return Judgement(verdict, False, (why,), longer, Certainty.POSSIBLE)
    if context.books_read:
        evidence = [
            f"{stacks} not on glibc's list of stacks in use: joined or detached, kept for reuse; {limit}"
        ]
        if total > _SLACK * cache_limit(context):
            evidence.append(f"conflicting evidence: {size(total)} is far more than that cache may hold")
        return Judgement(verdict, False, tuple(evidence), _ADVICE)
    reason = context.evidence.books.why or "no glibc"
    evidence = [
        f"cannot tell {stacks} never joined from cached ones: glibc's thread lists could not be read "
        f"({reason})"
    ]
    fits = total <= cache_limit(context)
    evidence.append(
        f"{size(total)} {'fit into a stack cache' if fits else 'are more than a stack cache holds'}: {limit}"
    )
    longer = BEFORE_ITS_END if context.ended else "trace longer: more than a cache can hold is called a leak"
    return Judgement(verdict, False, tuple(evidence), longer, Certainty.POSSIBLE, undecided=True)


STACK_CACHE = Rule(_claims, _judge, _split, by_place=False, only_stacks=True)
