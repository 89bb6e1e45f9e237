# SPDX-License-Identifier: Apache-2.0
"""Lost mapping: its owner lives, but nothing in the process points into it any more.

Memory that is in use without a pointer is rare: of 308 anonymous areas of nine healthy processes (servers,
runtimes, browsers) one was.  So it takes two of one place, made in the window, and it is never proved.
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

_LEAST = 2


def lost_mappings(cases: Sequence[Case], context: Context) -> list[tuple[list[Case], Judgement]]:
    """Those mappings of living owners that are lost, by the place that mapped them.

    ``cases`` are mappings with a living owner; nothing is said where pointers may be hidden.
    """
    if context.search.hidden:
        return []
    by_place: dict[SiteKey, list[Case]] = defaultdict(list)
    for case in cases:
        made_at = case.mapping.made_at
        if made_at is None or context.age(made_at) < context.evidence.min_age:
            continue
        if state_of(case, context) is State.LOST and _is_applications(case):
            by_place[case.facts.place].append(case)
    return [(lost, _judge(lost, context)) for lost in by_place.values() if len(lost) >= _LEAST]


def _is_applications(case: Case) -> bool:
    """Not an allocator's own, whose pointers we may not recognise; glibc's blocks have plain ones."""
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
