# SPDX-License-Identifier: Apache-2.0
"""Stacks whose parts were mapped by different calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diagnosis_scenes import (
    MAIN,
    STACK_BYTES,
    at,
    judge,
    listed_thread,
    only,
    pthread_stack,
    span,
    thread_lists,
)

from ebpftrace.model import Interval, Mapping, Outstanding, OwnedBy, Verdict

GUARD = 16384


def in_parts(
    exited: bool, before_attach: bool, clone_names_it: bool = True
) -> tuple[Interval, list[Outstanding]]:
    """The low end of a stack is a mapping of its own, and the clone call names that part, or none.

    None when the thread mapped that part after its birth, as threads of the JVM do.
    """
    whole = pthread_stack(1, exited=11 if exited else None, before_attach=before_attach)
    assert whole.owner is not None
    if not clone_names_it:
        whole = whole._replace(run=None, owned_by=OwnedBy.MAPPED_IT, mapper=whole.owner)
    start, end = whole.mapping.start, whole.mapping.end
    low = Mapping((Interval(start, start + GUARD),), at(10.5), whole.owner.id, 0, 0x4032, 0)
    rest = whole.mapping._replace(pieces=(Interval(start + GUARD, end),))
    mapper = None if before_attach else MAIN
    high = Outstanding(rest, mapper, None if before_attach else OwnedBy.MAPPED_IT, mapper)
    return span(whole), [whole._replace(mapping=low), high]


@pytest.mark.parametrize("clone_names_it", [False, True])
@pytest.mark.parametrize("before_attach", [False, True])
def test_a_cached_stack_in_parts_is_one_of_its_full_size(before_attach: bool, clone_names_it: bool) -> None:
    stack, parts = in_parts(True, before_attach, clone_names_it)
    finding = only(judge(parts, thread_lists(stack_cache=(stack,), stack_cache_bytes=stack.size)))
    assert (finding.verdict, finding.leak) == (Verdict.STACK_CACHE, False)
    assert (finding.count, finding.size) == (1, STACK_BYTES)


@pytest.mark.parametrize("clone_names_it", [False, True])
@pytest.mark.parametrize("before_attach", [False, True])
def test_a_never_joined_thread_on_a_stack_in_parts_is_one(before_attach: bool, clone_names_it: bool) -> None:
    stack, parts = in_parts(True, before_attach, clone_names_it)
    finding = only(judge(parts, thread_lists(listed_thread(stack))))
    assert (finding.verdict, finding.leak) == (Verdict.NEVER_JOINED, True)
    assert (finding.count, finding.size) == (1, STACK_BYTES)
    assert not (clone_names_it and finding.before_attach)


@pytest.mark.parametrize("clone_names_it", [False, True])
def test_a_part_mapped_by_a_thread_that_exited_is_no_orphan_while_one_lives_on_the_stack(
    clone_names_it: bool,
) -> None:
    stack, (low, high) = in_parts(False, False, clone_names_it)
    gone = replace(MAIN, exited_at=at(12))
    parts = [low, high._replace(owner=gone, mapper=gone)]
    assert judge(parts, thread_lists(listed_thread(stack, exited=False))).findings == ()


def test_stacks_that_overlap_in_the_lists_join_nothing() -> None:
    stack, parts = in_parts(True, False)
    wild = Interval(stack.start - 4096, stack.end + 4096)
    findings = judge(parts, thread_lists(stack_cache=(stack, wild))).findings
    assert sum(finding.size for finding in findings) == GUARD


def test_a_stack_whose_creator_laid_a_guard_over_its_low_end_is_one() -> None:
    """clone3 is given all of it; the guard is a mapping of the creator, which lives."""
    whole = pthread_stack(1, tgid=6000, size=65536)
    assert whole.run is not None
    start, end = span(whole)
    top = whole._replace(
        mapping=whole.mapping._replace(pieces=(Interval(start + 4096, end),)),
        run=whole.run._replace(stack=start, stack_size=65536),
    )
    guard = Mapping((Interval(start, start + 4096),), at(9), MAIN.id, 0, 0x32, 0)
    finding = only(judge([Outstanding(guard, MAIN, OwnedBy.MAPPED_IT, MAIN), top], thread_lists()))
    assert (finding.verdict, finding.count, finding.size) == (Verdict.ABANDONED_STACK, 1, 65536)
