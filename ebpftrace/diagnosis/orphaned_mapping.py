"""Orphaned mapping: the thread that mapped it exited.  A leak when its site keeps leaving more.

Mapping memory for others to use and free is sound, so one orphan, or a bounded number, proves nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.origin import allocator_of, by_malloc, creator_frame
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.frames import called
from ebpftrace.model import OwnedBy, Verdict
from ebpftrace.text import duration, plural

_OR_LATER = "or where it was handed over to"


def _claims(_case: Case, _context: Context) -> bool:
    return True


def _split(case: Case, _context: Context) -> Hashable:
    return case.outstanding.owned_by


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    first = cases[0]
    mappings = plural(len(cases), "mapping")
    if first.outstanding.owned_by is OwnedBy.RUNS_ON_IT:
        why = f"the exited thread's stack was only a part of it: {mappings} of a pool of stacks, or of a heap"
        return Judgement(False, (why,), "nothing to do unless the process grows")
    allocator = allocator_of(first.facts.stack)
    if allocator is not None:
        why = f"{mappings} of {allocator}, which keeps memory for the whole process, whoever asked for it"
        return Judgement(False, (why,), "not a leak of mappings; look with the allocator's own statistics")
    window = duration((context.evidence.judged_at - context.evidence.attached_at) / NS)
    if not context.keeps_growing(cases):
        why = f"{mappings} of threads that exited, no steady growth over {window}: kept, maybe handed over"
        return Judgement(False, (why,), "trace longer: a leak will show as growth")
    growth = f"{mappings} of threads that exited; more were left all through {window}, old ones stay"
    loaded = None if first.facts.stack.frames else context.allocator
    if loaded is not None:
        doubt = f"no stack tells whether {loaded} mapped them for the whole process: not called a leak"
        return Judgement(False, (growth, doubt), "look with the allocator's own statistics")
    creator = creator_frame(first.facts.stack)
    what = called(creator) if creator is not None else None
    if by_malloc(first.facts.stack):
        block = f"what {what} allocates" if what else "them"
        blocks = "each is one large block of malloc, which is unmapped when it is freed"
        return Judgement(True, (growth, blocks), f"free {block} before the thread exits, {_OR_LATER}")
    return Judgement(
        True, (growth,), f"unmap {f'what {what} maps' if what else 'it'} before the thread exits, {_OR_LATER}"
    )


ORPHANED_MAPPING = Rule(Verdict.ORPHANED_MAPPING, _claims, _judge, _split)
