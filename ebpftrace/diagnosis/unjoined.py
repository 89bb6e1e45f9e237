# SPDX-License-Identifier: Apache-2.0
"""Threads that have exited and have been neither joined nor detached so far.

glibc keeps a thread's stack on its list of stacks in use until the thread is joined or, if it is detached,
until it exits (nptl/nptl-stack.c, __nptl_free_tcb).  musl has no such list, but it keeps no stacks either:
a detached thread unmaps its own stack, pthread_join that of the other thread (src/thread/pthread_create.c,
pthread_join.c).  So a stack that is still mapped belongs to a thread that was not joined.

The question is whether the thread can still be joined, which takes its ``pthread_t``.  If no copy of it is
left in the process, the stack stays mapped for ever.  If a copy is left, only the joins seen in the window
can show whether it will be joined.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import Optional, Union

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.history import Departed
from ebpftrace.diagnosis.origin import Libc, Origin, creator_frame, fills_mapping
from ebpftrace.diagnosis.reach import (
    State,
    doubts,
    held_by,
    kept_of,
    proved,
    searched,
    state_of,
    why_unknown,
)
from ebpftrace.diagnosis.rule import LONG_ENOUGH, Context, Judgement, Rule
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.frames import called
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import count, duration, plural

_TWICE = 2
"""A thread that has waited this many times longer than any that was joined will not be joined."""


class _Ended(Enum):
    """What is known about the thread lists of a process that has ended."""

    FINAL = "final"
    """They were read when the process died."""
    JOINING = "joining"
    """As FINAL, and at that moment threads of the same creator were being joined."""
    EARLIER = "earlier"
    """They were read some time before the process died."""


_Split = Union[State, _Ended]


def claims(case: Case, context: Context) -> bool:
    """Whether the orphan is the stack of an exited thread that still has to be joined."""
    listed = case.facts.listed
    if listed is not None:
        return not listed.user_stack and not listed.detached
    return (
        context.libc is Libc.MUSL
        and case.facts.is_stack
        and case.facts.origin is not Origin.APPLICATION
        and fills_mapping(case.outstanding)
    )


def kind_of(case: Case, context: Context) -> tuple[Optional[int], SiteKey]:
    """The start routine and the site: threads that share both should be joined in the same way."""
    listed = case.facts.listed
    if listed is None:
        return None, case.facts.site
    return listed.start_routine, context.only_site.get(listed.start_routine, case.facts.site)


def creators(case: Case, site: SiteKey) -> set[Hashable]:
    """Two identities of the code that created the thread: its site, and the functions on its call stack.

    Line numbers are left out of the second, because a function that creates several threads, one after the
    other or in a loop, often joins them in turn.
    """
    path = tuple((frame.module, frame.function) for frame in case.facts.stack.frames if frame.function)
    return {site, path} if path else {site}


def is_stale(case: Case, context: Context) -> bool:
    """Whether a handle that is still stored is a stale copy, because most threads of this kind are lost."""
    if kind_of(case, context) not in context.stale:
        return False
    departed = _departed(case, context)
    return case.descriptor is None or not departed.number or _is_overdue(case.descriptor, departed, context)


def _departed(case: Case, context: Context) -> Departed:
    listed = case.facts.listed
    return context.history.departed(listed.start_routine) if listed is not None else Departed()


def _is_overdue(descriptor: int, departed: Departed, context: Context) -> bool:
    """Whether the thread has waited much longer than those with its start routine that were joined."""
    since = context.history.since(descriptor)
    return since is not None and context.age(since) > _TWICE * departed.longest + context.evidence.min_age


def _split(case: Case, context: Context) -> Hashable:
    if context.evidence.lists_final or (context.ended and context.libc is Libc.MUSL):
        is_next = not context.joining.isdisjoint(creators(case, kind_of(case, context)[1]))
        return _Ended.JOINING if is_next else _Ended.FINAL
    if context.ended:
        return _Ended.EARLIER
    state = state_of(case, context)
    return State.LOST if state is State.KEPT and is_stale(case, context) else state


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    split: Hashable = _split(cases[0], context)
    if split is _Ended.FINAL:
        return _judge_final(cases)
    if split is _Ended.JOINING:
        return _judge_joining(cases)
    if split is _Ended.EARLIER:
        return _judge_ended(cases, context)
    if split is State.LOST:
        return _judge_lost(cases, context)
    departed = _departed(cases[0], context)
    if _is_growing(cases, departed, context):
        return _judge_growing(cases, departed, context)
    if departed.number:
        return _joined_later(cases, departed)
    if split is State.KEPT:
        why = f"{_not_joined(cases)} so far; {_their(cases)} kept {held_by(cases)}"
        advice = "trace longer: joins will show, or a leak will show as growth"
        return Judgement(Verdict.NOT_JOINED_YET, False, (why,), advice, Certainty.POSSIBLE)
    why = f"cannot tell whether {_subject(cases)} will be joined: {why_unknown(context.search, cases[0])}"
    advice = "trace longer: joins will show, or a leak will show as growth"
    return Judgement(
        Verdict.NOT_JOINED_YET, False, (why,), advice, certainty=Certainty.POSSIBLE, undecided=True
    )


def _judge_final(cases: Sequence[Case]) -> Judgement:
    why = f"{_exited(cases)} and had not been joined or detached when the process ended (proved)"
    return Judgement(Verdict.NEVER_JOINED, True, (why,), _advice(cases), Certainty.PROVED)


def _judge_joining(cases: Sequence[Case]) -> Judgement:
    """A program that joins its threads in turn may have been at the first when a signal ended it."""
    why = f"{_exited(cases)} and had not been joined when the process ended"
    doubt = "it ended while another one of the same creator was being joined: these may have been next"
    advice = "nothing to do, if they are joined in turn: let the process end by itself"
    return Judgement(
        Verdict.NOT_JOINED_YET, False, (why, doubt), advice, certainty=Certainty.POSSIBLE, undecided=True
    )


def _judge_ended(cases: Sequence[Case], context: Context) -> Judgement:
    """The target exited: a program that joins its threads just before it exits leaves identical lists.

    So only growth can decide.
    """
    evidence = context.evidence
    read_at = evidence.lists_read_at if evidence.lists_read_at is not None else evidence.judged_at
    earlier = duration(context.age(read_at) / NS)
    why = f"{_exited(cases)} and had not been joined {earlier} before the process ended"
    if context.keeps_growing(cases):
        growth = "they piled up from the beginning to the end"
        return Judgement(Verdict.NEVER_JOINED, True, (why, growth), _advice(cases))
    doubt = "it is unknown whether they were joined after that"
    advice = "have the report made while the program runs: a shorter -d, or a pause before it ends"
    return Judgement(
        Verdict.NOT_JOINED_YET, False, (why, doubt), advice, certainty=Certainty.POSSIBLE, undecided=True
    )


def _judge_lost(cases: Sequence[Case], context: Context) -> Judgement:
    kept = kept_of(cases, context)
    lost = len(cases) - len(kept)
    who = "nobody can join it" if lost == 1 else "nobody can join them"
    copies = "its pthread_t" if lost == 1 else "their pthread_t"
    are = "thread has" if lost == 1 else "threads have"
    why = [
        f"{count(lost)} {are} exited and {who} any more{proved(context)}: "
        f"no copy of {copies} is left in the process ({searched(context)})"
    ]
    if kept:
        also = "1 more has" if len(kept) == 1 else f"{count(len(kept))} more have"
        why.append(f"{also} exited likewise, and the handle is still stored {held_by(kept)}: a stale copy")
    why += doubts(context)
    return Judgement(Verdict.NEVER_JOINED, True, tuple(why), _advice(cases), context.certainty_of_lost)


def _is_growing(cases: Sequence[Case], departed: Departed, context: Context) -> bool:
    """Whether the number of unjoined threads grows, and none that waited as long as they did is joined."""
    if context.window < LONG_ENOUGH or not context.keeps_growing(cases):
        return False
    threads = [case.descriptor for case in cases if case.descriptor is not None]
    if not threads:
        return context.outgrows(cases)
    made = sum(case.mapping.made_at is not None for case in cases)
    routine, _ = kind_of(cases[0], context)
    unjoined_at_first = context.history.first.get(routine, 0) if routine is not None else 0
    if len(threads) - unjoined_at_first < made / 2:
        return False  # the new ones replace old ones
    if not departed.number:
        return True
    overdue = sum(_is_overdue(thread, departed, context) for thread in threads)
    return 2 * overdue >= len(threads)


def _judge_growing(cases: Sequence[Case], departed: Departed, context: Context) -> Judgement:
    window = duration(context.window / NS)
    why = [f"{_not_joined(cases)}; there were ever more of them over {window}"]
    if departed.number:
        joined = plural(departed.number, "other was", "others were")
        why.append(f"{joined} joined within {duration(departed.longest / NS)}, these have waited longer")
    else:
        why.append("none was joined in that time")
    if cases[0].reach is not None:
        why.append(f"{_their(cases)} kept {held_by(cases)}, so they may still be joined")
    return Judgement(Verdict.NEVER_JOINED, True, tuple(why), _advice(cases), Certainty.LIKELY)


def _joined_later(cases: Sequence[Case], departed: Departed) -> Judgement:
    joined = plural(departed.number, "thread")
    late = f" up to {duration(departed.longest / NS)}" if departed.exact else ""
    why = (
        f"{_not_joined(cases)} so far; {joined} that began in the same function "
        f"{'was' if departed.number == 1 else 'were'} joined{late} after {_its(departed)} end was seen"
    )
    advice = "nothing to do: they are joined later"
    return Judgement(Verdict.JOINED_LATER, False, (why,), advice, Certainty.LIKELY)


def _its(departed: Departed) -> str:
    return "its" if departed.number == 1 else "their"


def _exited(cases: Sequence[Case]) -> str:
    return plural(len(cases), "thread has exited", "threads have exited")


def _not_joined(cases: Sequence[Case]) -> str:
    return f"{_exited(cases)} and {'has' if len(cases) == 1 else 'have'} not been joined"


def _their(cases: Sequence[Case]) -> str:
    return "its handle is" if len(cases) == 1 else "their handles are"


def _subject(cases: Sequence[Case]) -> str:
    return plural(len(cases), "exited thread")


def _advice(cases: Sequence[Case]) -> str:
    creator = next(filter(None, (creator_frame(case.facts.stack) for case in cases)), None)
    where = f" the threads that {called(creator)} creates" if creator is not None else " these threads"
    return f"join{where} (pthread_join), or detach them: pthread_detach or PTHREAD_CREATE_DETACHED"


UNJOINED = Rule(claims, _judge, _split)
