"""Abandoned stack: the application mapped it, its last owner exited, no task runs on it or took it over.

Only the application can unmap a stack it gave to clone(2) or pthread_attr_setstack(3).

Nobody can unmap that of a detached thread that ended by a bare exit system call: such a thread frees its
stack itself, in what pthread_exit and a return from its start routine do before that call
(nptl/pthread_create.c, start_thread).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.origin import (
    Libc,
    Origin,
    creator_frame,
    fills_mapping,
    foreign,
    raw_clone,
    used_late,
)
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.diagnosis.stack_cache import cache_limit
from ebpftrace.frames import called
from ebpftrace.model import Verdict
from ebpftrace.text import plural, size

_OVERFLOWING = "overflowing"
_BOOKED = "booked"
_BARE_EXIT = "bare exit"
_SETTLED = "settled"
_DOUBTFUL = "doubtful"


def _is_applications(case: Case) -> bool:
    if case.facts.booked is not None:
        return case.facts.booked.user_stack or case.facts.booked.detached
    if case.facts.cached or not case.facts.is_stack:
        return False
    return case.facts.origin is Origin.APPLICATION and fills_mapping(case.outstanding)


def _claims(case: Case, context: Context) -> bool:
    if _is_applications(case):
        return True
    return case.facts.is_stack and not case.facts.cached and case.facts.place in context.overflowing


def _split(case: Case, context: Context) -> Hashable:
    """What decides for each orphan: settled by itself, or doubtful unless its place keeps leaving more.

    A runtime that makes its threads without a C library (Go) manages its stacks in ways we don't know.
    """
    if case.facts.booked is not None:
        return _BARE_EXIT if case.facts.booked.detached else _BOOKED
    if not _is_applications(case):
        return _OVERFLOWING
    known = context.libc is not Libc.UNKNOWN or foreign(case.outstanding, context.evidence.tgid)
    return _SETTLED if known and not used_late(case.outstanding) else _DOUBTFUL


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    stacks = plural(len(cases), "stack")
    kind = _split(cases[0], context)
    if kind == _BARE_EXIT:
        why = (
            f"{stacks} of detached threads that exited but are on glibc's list of stacks in use: they ended "
            "by a bare exit system call, and so passed over what takes them off that list (proved)"
        )
        return Judgement(
            True, (why,), "end these threads by pthread_exit or a return, not by syscall(SYS_exit)"
        )
    if kind == _BOOKED:
        why = (
            f"{stacks} that the application gave to threads: they exited, and glibc's list of user stacks "
            "still has them: never joined (proved), so their stacks can't be freed"
        )
        return Judgement(True, (why,), "pthread_join the threads, then free their stacks")
    if kind == _OVERFLOWING:
        evidence = (_overflow(cases, context), "its site left more of them over the whole window")
        return Judgement(True, evidence, "join or detach the threads; unmap stacks the program maps itself")
    why = f"{stacks} that the application mapped; the last owner exited, and nobody took over since"
    advice = _advice(cases[0], context)
    if kind == _SETTLED:
        return Judgement(True, (why,), advice)
    if context.keeps_growing(cases):
        return Judgement(True, (why, "its site left more of them over the whole window"), advice)
    doubt = (
        "it had served before, or its runtime manages it: perhaps kept for reuse; no growth over the window"
    )
    return Judgement(False, (why, doubt), "trace longer: a leak will show as growth")


def _overflow(cases: Sequence[Case], context: Context) -> str:
    total = size(sum(case.mapping.size for case in cases))
    if context.cache_listed:
        return f"{total} of stacks of exited threads, neither in use nor cached by glibc's books"
    limit = size(cache_limit(context))
    source = "" if context.books_read else f"no books of glibc ({context.evidence.books.why or 'none'}): "
    return f"{source}{total} of stacks of exited threads, more than glibc's stack cache of {limit} can hold"


def _advice(case: Case, context: Context) -> str:
    creator = creator_frame(case.facts.stack)
    where = f" in {called(creator)}" if creator is not None else ""
    if raw_clone(case.outstanding, context.evidence.tgid):
        return f"munmap the stack{where} once waitpid has returned for the task cloned on it"
    return f"munmap the stack{where} after the thread was joined, or give it to the next one"


ABANDONED_STACK = Rule(Verdict.ABANDONED_STACK, _claims, _judge, _split, only_stacks=True)
