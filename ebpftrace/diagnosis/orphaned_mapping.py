# SPDX-License-Identifier: Apache-2.0
"""Orphaned mapping: the thread that mapped it has exited.

Mapping memory for other threads to use and unmap is sound.  If nothing points into it any more, nobody can
unmap it, so even a single such mapping is a leak.  If something does, only the window can show whether other
threads unmap such mappings or their number keeps growing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.origin import allocator_of, by_malloc, creator_frame
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
from ebpftrace.diagnosis.rule import LONG_ENOUGH, Context, Judgement, Rule
from ebpftrace.frames import called
from ebpftrace.model import Certainty, OwnedBy, Verdict
from ebpftrace.text import duration, plural

_OR_LATER = "or where it was handed over to"
_LONGER = "trace longer: a leak will show as growth"


def _claims(_case: Case, _context: Context) -> bool:
    return True


def kind_of(case: Case) -> Hashable:
    """Orphans of one kind were mapped at the same site."""
    return "mapping", case.facts.site, case.outstanding.owned_by


def _split(case: Case, context: Context) -> Hashable:
    return case.outstanding.owned_by, _state(case, context)


def _state(case: Case, context: Context) -> State:
    return with_stale(case, context, kind_of(case))


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    first = cases[0]
    mappings = plural(len(cases), "mapping")
    state = _state(first, context)
    allocator = allocator_of(first.facts.stack)
    if allocator is not None:
        why = f"{mappings} of {allocator}, which keeps memory for the whole process, whoever asked for it"
        advice = "not a leak of mappings; use the allocator's own statistics"
        return Judgement(Verdict.HANDED_OVER, False, (why,), advice)
    if state is State.LOST:
        return _judge_lost(cases, context)
    if first.outstanding.owned_by is OwnedBy.RUNS_ON_IT:
        why = f"the exited thread's stack was only a part of it: {mappings} of a pool of stacks, or of a heap"
        return Judgement(Verdict.HANDED_OVER, False, (why,), "nothing to do unless the process grows")
    window = duration(context.window / NS)
    # After the end of the process nothing can be searched or traced for longer, so growth alone must decide.
    is_leak = context.keeps_growing(cases) and context.outgrows(cases)
    if not context.ended:
        is_leak = is_leak and context.window >= LONG_ENOUGH
    if not is_leak:
        return _judge_kept(cases, state, context)
    growth = f"{mappings} of threads that exited; more were left all through {window}, old ones stay"
    loaded = None if first.facts.stack.frames else context.allocator
    if loaded is not None:
        doubt = f"no stack shows whether {loaded} mapped them for the whole process: not called a leak"
        return Judgement(Verdict.HANDED_OVER, False, (growth, doubt), "use the allocator's own statistics")
    why_kept = (f"pointers to them are kept {held_by(cases)}",) if state is State.KEPT else ()
    return Judgement(Verdict.ORPHANED_MAPPING, True, (growth, *why_kept, *_of_malloc(first)), _advice(first))


def _judge_lost(cases: Sequence[Case], context: Context) -> Judgement:
    kept = kept_of(cases, context)
    lost = plural(len(cases) - len(kept), "mapping")
    why = [
        f"nothing in the process points into {lost} of threads that exited, so nobody can unmap "
        f"{'it' if len(cases) - len(kept) == 1 else 'them'} any more{proved(context)} ({searched(context)})"
    ]
    if kept:
        more = "1 more was" if len(kept) == 1 else f"{len(kept)} more were"
        why.append(f"{more} left likewise, and an address is still stored {held_by(kept)}: a stale copy")
    why += doubts(context)
    first = cases[0]
    return Judgement(
        Verdict.ORPHANED_MAPPING, True, (*why, *_of_malloc(first)), _advice(first), context.certainty_of_lost
    )


def _judge_kept(cases: Sequence[Case], state: State, context: Context) -> Judgement:
    mappings = plural(len(cases), "mapping")
    window = f" over {duration(context.window / NS)}" if context.window else ""
    if state is State.KEPT:
        why = f"{mappings} of threads that exited; pointers to them are kept {held_by(cases)}"
        growth = f"no steady growth{window}"
        return Judgement(Verdict.HANDED_OVER, False, (why, growth), _LONGER, Certainty.POSSIBLE)
    if context.ended:
        why = f"{mappings} of exited threads were left at the end, no steady growth{window}: handed over?"
        return Judgement(Verdict.HANDED_OVER, False, (why,), _LONGER, Certainty.POSSIBLE)
    unknown = why_unknown(context.search, cases[0])
    why = f"cannot tell whether {mappings} of threads that exited are still used: {unknown}"
    return Judgement(Verdict.HANDED_OVER, False, (why,), _LONGER, Certainty.POSSIBLE, undecided=True)


def _of_malloc(first: Case) -> tuple[str, ...]:
    if by_malloc(first.facts.stack):
        return ("each is one large block of malloc, which is unmapped when it is freed",)
    return ()


def _advice(first: Case) -> str:
    creator = creator_frame(first.facts.stack)
    what = called(creator) if creator is not None else None
    if by_malloc(first.facts.stack):
        return f"free {f'what {what} allocates' if what else 'them'} before the thread exits, {_OR_LATER}"
    return f"unmap {f'what {what} maps' if what else 'it'} before the thread exits, {_OR_LATER}"


ORPHANED_MAPPING = Rule(_claims, _judge, _split)
