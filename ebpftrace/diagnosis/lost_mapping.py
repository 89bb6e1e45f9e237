# SPDX-License-Identifier: Apache-2.0
"""Lost mapping: its owner lives, but nothing in the process points into it any more.

Memory in use without a pointer to it is rare: it was one of 308 anonymous areas of nine healthy processes
(servers, runtimes, browsers).  So a finding takes two mappings of one site that were made in the window, and
it is never called proved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.origin import allocator_of, by_malloc, creator_frame, mmap_caller
from ebpftrace.diagnosis.reach import State, searched, state_of
from ebpftrace.diagnosis.rule import Context, Judgement
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.frames import called
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import plural

_MIN = 2


def lost_mappings(cases: Sequence[Case], context: Context) -> list[tuple[list[Case], Judgement]]:
    """Judge the lost ones among mappings whose owner lives, by the site that mapped them.

    Returns nothing if pointers may be stored in a form that the search can't recognise.
    """
    if context.search.hidden:
        return []
    by_site: dict[SiteKey, list[Case]] = defaultdict(list)
    for case in cases:
        made_at = case.mapping.made_at
        if made_at is None or context.age(made_at) < context.evidence.min_age:
            continue
        if state_of(case, context) is State.LOST and _is_applications(case):
            by_site[case.facts.site].append(case)
    return [(lost, _judge(lost, context)) for lost in by_site.values() if len(lost) >= _MIN]


def _is_applications(case: Case) -> bool:
    """Whether it is not an allocator's, whose pointers may be encoded; those to blocks of glibc are plain."""
    stack = case.facts.stack
    if allocator_of(stack) is not None:
        return False
    return mmap_caller(stack) is not None or by_malloc(stack)


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    mappings = plural(len(cases), "mapping")
    why = (
        f"nothing in the process points into {mappings} any more, although the threads that mapped them "
        f"live ({searched(context)})"
    )
    creator = creator_frame(cases[0].facts.stack)
    what = called(creator) if creator is not None else None
    if by_malloc(cases[0].facts.stack):
        advice = f"free {f'what {what} allocates' if what else 'them'} before the last pointer to it goes"
    else:
        advice = f"unmap {f'what {what} maps' if what else 'them'} before the last pointer to it goes"
    return Judgement(Verdict.LOST_MAPPING, True, (why,), advice, Certainty.LIKELY)
