"""Joined in turn: a program that joins its threads one after the other waits for one of them now.

Those that finished before it are on glibc's list like any that nobody joins, for as long as it runs.  glibc
does not note who waits in pthread_join, but the waiting thread sleeps on a futex in the descriptor of
the awaited one (nptl/pthread_join_common.c: its ``tid``, since 2.43 its ``joinstate``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.model import Verdict
from ebpftrace.text import plural

_JOIN_FIELDS = 1024
"""Bytes from the beginning of a descriptor; both fields are in it in every version."""
_MOST = 256
"""A loop of joins has seldom more threads; so many that exited, and none joined, are a leak."""


def routines_in_turn(cases: Sequence[Case], context: Context) -> frozenset[int]:
    """Start routines of which one thread is awaited, and that do not leave more and more behind."""
    waits = sorted(context.evidence.futex_waits)
    if not waits or not context.books_read:
        return frozenset()
    awaited = {
        thread.start_routine
        for thread in context.evidence.books.threads
        if not thread.exited and _is_awaited(thread.descriptor, waits)
    }
    exited = defaultdict(list)
    for case in cases:
        if case.facts.booked is not None and case.facts.booked.start_routine in awaited:
            exited[case.facts.booked.start_routine].append(case)
    return frozenset(
        routine
        for routine, group in exited.items()
        if len(group) <= _MOST and not context.keeps_growing(group)
    )


def _is_awaited(descriptor: int, waits: Sequence[int]) -> bool:
    position = bisect_left(waits, descriptor)
    return position < len(waits) and waits[position] < descriptor + _JOIN_FIELDS


def _claims(case: Case, context: Context) -> bool:
    booked = case.facts.booked
    return booked is not None and not booked.detached and booked.start_routine in context.in_turn


def _judge(cases: Sequence[Case], _context: Context) -> Judgement:
    threads = plural(len(cases), "thread has", "threads have")
    why = (
        f"{threads} exited and not been joined yet, but a pthread_join waits for another one that began in "
        "the same function: these may be next"
    )
    return Judgement(False, (why,), "look again when that thread has ended, or trace longer: a leak grows")


JOINED_IN_TURN = Rule(Verdict.JUST_EXITED, _claims, _judge, only_stacks=True)
