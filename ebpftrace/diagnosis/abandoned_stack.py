# SPDX-License-Identifier: Apache-2.0
"""Abandoned stack: the application mapped it, its last owner has exited, and no other task runs on it.

Only the application can unmap a stack that it passed to clone(2) or pthread_attr_setstack(3), and it needs
the address to do so.  A stack that is still referred to may belong to a pool and serve the next thread.

The stack of a detached thread that ended by a bare exit system call can't be freed by anything: such a
thread frees its stack itself, in the code that pthread_exit and a return from the start routine run before
that system call (nptl/pthread_create.c, start_thread).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.origin import (
    Libc,
    Origin,
    creator_frame,
    fills_mapping,
    foreign,
    used_late,
)
from ebpftrace.diagnosis.reach import (
    State,
    doubts,
    held_by,
    kept_of,
    proved,
    searched,
    why_unknown,
    with_stale,
)
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.diagnosis.stack_cache import cache_limit
from ebpftrace.frames import called
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import count, plural, size


class _Kind(Enum):
    """What used the stack."""

    BARE_EXIT = "of a detached thread that ended by a bare exit system call"
    UNJOINED = "given to a pthread that nobody joined"
    OVERFLOWING = "from a site that left more than glibc's cache can hold"
    APPLICATION = "given to a thread or to clone"
    ANY = "of a thread of an unknown library"


_LONGER = "trace longer: a leak will show as growth"


def _is_applications(case: Case) -> bool:
    if case.facts.listed is not None:
        return case.facts.listed.user_stack or case.facts.listed.detached
    if case.facts.cached or not case.facts.is_stack:
        return False
    return case.facts.origin is Origin.APPLICATION and fills_mapping(case.outstanding)


def _claims(case: Case, context: Context) -> bool:
    if _is_applications(case):
        return True
    if not case.facts.is_stack or case.facts.cached or not fills_mapping(case.outstanding):
        return False
    return case.facts.site in context.overflowing or _state(case, context) is State.LOST


def kind_of(case: Case) -> Hashable:
    """Stacks of one kind were given to threads at the same site."""
    return "stack", case.facts.site


def _state(case: Case, context: Context) -> State:
    return with_stale(case, context, kind_of(case))


def _kind(case: Case) -> _Kind:
    listed = case.facts.listed
    if listed is not None:
        return _Kind.BARE_EXIT if listed.detached else _Kind.UNJOINED
    return _Kind.APPLICATION if _is_applications(case) else _Kind.ANY


def _split(case: Case, context: Context) -> tuple[_Kind, State, bool]:
    """What the judgement depends on: the use, whether the stack is lost, and whether it had been reused."""
    state = _state(case, context)
    kind = _kind(case)
    if kind is _Kind.ANY and state is not State.LOST:
        kind = _Kind.OVERFLOWING
    return kind, state, used_late(case.outstanding) if kind is _Kind.APPLICATION else False


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    kind, state, late = _split(cases[0], context)
    stacks = plural(len(cases), "stack")
    if kind is _Kind.BARE_EXIT:
        why = (
            f"{stacks} of detached threads that exited but are on glibc's list of stacks in use: they ended "
            "by a bare exit system call, and so passed over what takes them off that list (proved)"
        )
        advice = "end these threads by pthread_exit or a return, not by syscall(SYS_exit)"
        return Judgement(Verdict.ABANDONED_STACK, True, (why,), advice, Certainty.PROVED)
    if kind is _Kind.UNJOINED:
        return _judge_unjoined(cases, state, context)
    if state is State.LOST:
        return _judge_lost(cases, context)
    if kind is _Kind.OVERFLOWING:
        evidence = (_overflow(cases, context), "its site left more of them over the whole window")
        advice = "join or detach the threads; unmap stacks the program maps itself"
        return Judgement(Verdict.ABANDONED_STACK, True, evidence, advice)
    return _judge_kept(cases, state, late, context)


def _judge_unjoined(cases: Sequence[Case], state: State, context: Context) -> Judgement:
    """Judge stacks that the application gave to pthreads which exited and are still on glibc's lists."""
    stacks = plural(len(cases), "stack")
    advice = "pthread_join the threads, then free their stacks"
    listed = f"{stacks} that the application gave to threads: they exited and were not joined"
    if context.evidence.lists_final:
        why = f"{listed} when the process ended (proved)"
        return Judgement(Verdict.ABANDONED_STACK, True, (why,), advice, Certainty.PROVED)
    if state is State.LOST:
        why = (
            f"{listed}; no copy of their pthread_t is left, so nobody can join them any more"
            f"{proved(context)} ({searched(context)})"
        )
        return Judgement(Verdict.ABANDONED_STACK, True, (why,), advice, context.certainty_of_lost)
    if context.is_leak_of_kept(cases) or (context.ended and context.keeps_growing(cases)):
        why = f"{listed}; there were ever more of them over the whole window"
        return Judgement(Verdict.ABANDONED_STACK, True, (why,), advice)
    if state is State.KEPT:
        why = f"{listed} so far; their handles are kept {held_by(cases)}"
        return Judgement(Verdict.NOT_JOINED_YET, False, (why,), _LONGER, Certainty.POSSIBLE)
    reason = "the process ended" if context.ended else why_unknown(context.search, cases[0])
    why = f"{listed} so far; cannot tell whether they will be: {reason}"
    return Judgement(Verdict.NOT_JOINED_YET, False, (why,), _LONGER, Certainty.POSSIBLE, undecided=True)


def _judge_lost(cases: Sequence[Case], context: Context) -> Judgement:
    kept = kept_of(cases, context)
    lost = plural(len(cases) - len(kept), "stack")
    why = [
        f"{lost} on which the last thread has exited; nothing points there any more, so nobody can unmap "
        f"{'it' if len(cases) - len(kept) == 1 else 'them'}{proved(context)} ({searched(context)})"
    ]
    if kept:
        more = "1 more was" if len(kept) == 1 else f"{count(len(kept))} more were"
        why.append(f"{more} left likewise, and an address is still stored {held_by(kept)}: a stale copy")
    why += doubts(context)
    return Judgement(Verdict.ABANDONED_STACK, True, tuple(why), _advice(cases[0]), context.certainty_of_lost)


def _judge_kept(cases: Sequence[Case], state: State, late: bool, context: Context) -> Judgement:
    stacks = plural(len(cases), "stack")
    advice = _advice(cases[0])
    why = f"{stacks} that the application mapped; the last owner has exited, and no thread runs on them"
    if context.ended:
        # A stack that was mapped for one thread and was still mapped at the end was never unmapped.
        known = context.libc is not Libc.UNKNOWN or foreign(cases[0].outstanding, context.evidence.tgid)
        if context.keeps_growing(cases) or (known and not late and cases[0].facts.by_clone):
            return Judgement(Verdict.ABANDONED_STACK, True, (why, "they were mapped at the end"), advice)
        doubt = "perhaps a pool of stacks: no growth over the window"
        return Judgement(Verdict.ABANDONED_STACK, False, (why, doubt), _LONGER, Certainty.POSSIBLE)
    kept = f"their addresses are kept {held_by(cases)}"
    reuse = "some had served before: a pool" if late else "perhaps a pool of stacks"
    if context.is_leak_of_kept(cases):
        growth = "there were ever more of them over the whole window, and none was used again"
        return Judgement(
            Verdict.ABANDONED_STACK, True, (why, growth, *((kept,) if state is State.KEPT else ())), advice
        )
    if state is State.KEPT:
        doubt = f"{kept}: {reuse}; no growth over the window"
        return Judgement(Verdict.ABANDONED_STACK, False, (why, doubt), _LONGER, Certainty.POSSIBLE)
    doubt = f"cannot tell whether they are used again: {why_unknown(context.search, cases[0])}"
    return Judgement(
        Verdict.ABANDONED_STACK, False, (why, doubt), _LONGER, Certainty.POSSIBLE, undecided=True
    )


def _overflow(cases: Sequence[Case], context: Context) -> str:
    total = size(sum(case.mapping.size for case in cases))
    if context.cache_listed:
        return f"{total} of stacks of exited threads, neither in use nor cached by glibc's thread lists"
    limit = size(cache_limit(context))
    source = (
        "" if context.lists_read else f"no thread lists ({context.evidence.thread_lists.why or 'none'}): "
    )
    return f"{source}{total} of stacks of exited threads, more than glibc's stack cache of {limit} can hold"


def _advice(case: Case) -> str:
    creator = creator_frame(case.facts.stack)
    where = f" in {called(creator)}" if creator is not None else ""
    if case.facts.by_clone:
        return f"munmap the stack{where} once waitpid has returned for the task cloned on it"
    return f"munmap the stack{where} after the thread was joined, or give it to the next one"


ABANDONED_STACK = Rule(_claims, _judge, _split)
