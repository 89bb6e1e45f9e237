# SPDX-License-Identifier: Apache-2.0
"""Stack cache: glibc keeps up to 40 MiB of stacks of joined and detached threads for reuse.

queue_stack (nptl/nptl-stack.c) puts a freed stack into the cache and unmaps the oldest ones until the cache
is within ``glibc.pthread.stack_cache_size``.  A stack whose thread is still exiting can't be unmapped yet, so
the cache is over its limit at times; only more than twice the limit counts as too much.
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
    """Bytes that glibc's cache may hold."""
    limit = context.evidence.thread_lists.stack_cache_limit
    return STACK_CACHE_LIMIT if limit is None else limit


def _may_be_cached(case: Case, context: Context) -> bool:
    return (
        case.facts.is_stack
        and case.facts.listed is None
        and context.libc is not Libc.MUSL
        and case.facts.origin is not Origin.APPLICATION
        and fills_mapping(case.outstanding)
    )


def overflowing_sites(cases: Sequence[Case], context: Context) -> frozenset[SiteKey]:
    """Sites whose stacks can't all be in the cache: there are too many, and they grow over the window.

    If glibc's thread lists were read, stacks that glibc mapped are not counted: such a stack that is not in
    use is in the cache or about to be unmapped.
    """
    suspects: dict[SiteKey, list[Case]] = defaultdict(list)
    for case in cases:
        if _may_be_cached(case, context) and not case.facts.cached and not JUST_EXITED.claims(case, context):
            if context.lists_read and case.facts.origin is Origin.LIBC:
                continue
            suspects[case.facts.site].append(case)
    total = sum(case.mapping.size for group in suspects.values() for case in group)
    if total <= _SLACK * cache_limit(context):
        return frozenset()
    return frozenset(site for site, group in suspects.items() if context.keeps_growing(group))


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
    if context.lists_read:
        evidence = [
            f"{stacks} not on glibc's list of stacks in use: joined or detached, kept for reuse; {limit}"
        ]
        if total > _SLACK * cache_limit(context):
            evidence.append(f"conflicting evidence: {size(total)} is far more than that cache may hold")
        return Judgement(verdict, False, tuple(evidence), _ADVICE)
    reason = context.evidence.thread_lists.why or "no glibc"
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


STACK_CACHE = Rule(_claims, _judge, _split, by_site=False)
