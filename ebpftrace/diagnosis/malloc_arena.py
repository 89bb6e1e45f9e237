# SPDX-License-Identifier: Apache-2.0
"""Malloc arena: a heap of glibc's malloc outlives the thread it was made for and serves later ones.

alloc_new_heap (malloc/arena.c) calls mmap(2 x HEAP_MAX_SIZE, PROT_NONE, MAP_NORESERVE) and unmaps head and
tail, so that one aligned heap remains; since 2.37 it does without MAP_NORESERVE.  HEAP_MAX_SIZE is 64 MiB on
64-bit systems; with glibc.malloc.hugetlb=2 a heap is aligned to its own size, a few huge pages, and has
MAP_HUGETLB.  shrink_heap may put a MAP_FIXED mapping over the tail of a heap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ebpftrace.callflags import (
    MAP_FIXED,
    MAP_HUGETLB,
    MAP_NORESERVE,
    MAP_STACK,
    PRIVATE_ANONYMOUS,
    PROT_NONE,
    has_all,
)
from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.origin import Libc, by_malloc, fills_mapping, is_libc, mmap_caller
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.glibc import HEAP_MAX_SIZE, most_arenas
from ebpftrace.model import Mapping, Stack, Verdict
from ebpftrace.text import plural

_MALLOC_FUNCTIONS = frozenset(
    {"shrink_heap", "heap_trim", "new_heap", "alloc_new_heap", "arena_get2", "_int_new_arena"}
)
_SHRINKING_DEPTH = 3
_WITHOUT_NORESERVE = (2, 37)
"""The first glibc that does not pass MAP_NORESERVE (malloc/arena.c; seen with 2.36, 2.41 and 2.43)."""

_ADVICE = "nothing to do; MALLOC_ARENA_MAX or mallopt(M_ARENA_MAX) bounds the address space they take"
_GROWING = "no leak of mappings; where their RSS grows too, use a heap profiler to see what is not freed"


def is_heap(mapping: Mapping, libc: str) -> bool:
    """Whether a mapping has the shape of a heap of glibc's malloc; ``libc`` is such as "glibc 2.36"."""
    if mapping.flags is None or mapping.prot != PROT_NONE or mapping.flags & MAP_STACK:
        return False
    if not has_all(mapping.flags, PRIVATE_ANONYMOUS):
        return False
    if not mapping.flags & MAP_NORESERVE and not _leaves_out_noreserve(libc):
        return False
    span = mapping.end - mapping.start
    if mapping.flags & MAP_HUGETLB:
        return span & (span - 1) == 0 and mapping.start % span == 0
    return mapping.start % HEAP_MAX_SIZE == 0 and span <= HEAP_MAX_SIZE


def _leaves_out_noreserve(libc: str) -> bool:
    version = re.search(r"glibc (\d+)\.(\d+)", libc)
    return version is not None and tuple(map(int, version.groups())) >= _WITHOUT_NORESERVE


def _is_overlay(case: Case) -> bool:
    mapping = case.mapping
    if mapping.flags is None or not mapping.flags & MAP_FIXED:
        return False
    innermost = case.facts.stack.frames[: _SHRINKING_DEPTH + 1]
    return any(frame.function in _MALLOC_FUNCTIONS for frame in innermost)


def _claims(case: Case, context: Context) -> bool:
    facts = case.facts
    if case.mapping.prot != PROT_NONE:  # heaps and overlays are both mapped with it
        return False
    if context.libc is Libc.MUSL or (facts.is_stack and (facts.cached or fills_mapping(case.outstanding))):
        return False
    is_shaped = is_heap(case.mapping, context.evidence.thread_lists.libc)
    return (is_shaped and _may_be_from_malloc(facts.stack)) or _is_overlay(case)


def _may_be_from_malloc(stack: Stack) -> bool:
    """Whether malloc may have called mmap: it did not if the caller has a name outside the C library.

    The shape does not suffice, because other allocators and applications also map 64 MiB aligned to its size.
    """
    caller = mmap_caller(stack)
    if caller is None or is_libc(caller.module) or by_malloc(stack):
        return True
    return any(frame.function in _MALLOC_FUNCTIONS for frame in stack.frames[: _SHRINKING_DEPTH + 1])


def _limit(context: Context) -> tuple[int, str]:
    given = context.evidence.arena_limit
    if given is not None:
        return given, "MALLOC_ARENA_MAX"
    limit, counted = most_arenas(context.evidence.thread_lists.libc, context.evidence.cores)
    return limit, plural(counted, "core")


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    heaps = sum(1 for case in cases if is_heap(case.mapping, context.evidence.thread_lists.libc))
    limit, source = _limit(context)
    bound = f"malloc makes at most {plural(limit, 'arena')} here ({source})"
    is_growing = context.keeps_growing(cases)
    kept = "more all through the window: new arenas, or what the program mallocs and keeps grows"
    if not is_growing:
        kept = "kept for later threads"
    evidence = [f"{plural(heaps, 'heap')} as glibc's malloc makes them, {kept}; {bound}"]
    if heaps > limit:
        evidence.append(
            f"conflicting evidence: {heaps} heaps are more than {limit} arenas; an arena that outgrows its "
            "heap has several, so check what the program allocates and keeps"
        )
    return Judgement(Verdict.MALLOC_ARENA, False, tuple(evidence), _GROWING if is_growing else _ADVICE)


MALLOC_ARENA = Rule(_claims, _judge, by_site=False)
