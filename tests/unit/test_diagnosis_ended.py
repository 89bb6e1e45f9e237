# SPDX-License-Identifier: Apache-2.0
"""The target is gone, and glibc's thread lists were read last a while before its end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diagnosis_scenes import (
    ABSENT,
    MUSL,
    REPORT,
    SECOND,
    THREAD_SITE,
    THREAD_STACK,
    at,
    judge,
    listed_thread,
    only,
    pthread_stack,
    span,
    thread_lists,
)

from ebpftrace.model import Certainty, Outstanding, Stack, Verdict

ENDED = {"target_exited_at": REPORT, "lists_read_at": REPORT - SECOND // 2}
"""At second 60 of the window; the thread lists were read half a second earlier."""


def test_stacks_that_pile_up_until_the_end_are_a_leak() -> None:
    stacks = [pthread_stack(n, started_at=n * 5, exited=n * 5 + 1) for n in range(11)]
    found = only(judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks)), **ENDED))
    assert (found.verdict, found.leak, found.count) == (Verdict.NEVER_JOINED, True, 11)
    assert "500 ms before the process ended" in found.evidence[0]
    assert any(line.endswith("9.0 s before the process ended") for line in found.evidence)
    assert not any("report" in line for line in found.evidence)


def test_a_few_that_were_not_joined_shortly_before_the_end_are_undecided() -> None:
    stacks = [pthread_stack(n, started_at=10, exited=11) for n in range(8)]
    diagnosis = judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks)), **ENDED)
    found = only(diagnosis)
    assert (found.verdict, found.leak, found.count) == (Verdict.NOT_JOINED_YET, False, 8)
    assert any("it is unknown" in line for line in found.evidence)
    assert diagnosis.undecided == 8


def test_what_was_unmapped_after_the_lists_were_read_is_not_counted() -> None:
    """Joined in the last moments: too much for glibc's cache."""
    stacks = [pthread_stack(n, started_at=10, exited=11) for n in range(8)]
    diagnosis = judge(stacks[:3], thread_lists(*(listed_thread(span(stack)) for stack in stacks)), **ENDED)
    assert only(diagnosis).count == diagnosis.undecided == 3


def test_exits_after_the_reading_are_undecided_and_those_with_the_process_are_not() -> None:
    young = [
        pthread_stack(n, started_at=10, exited=when) for n, when in enumerate([58.8, 59.2, 59.99, 60.01])
    ]
    diagnosis = judge(young, thread_lists(), **ENDED)
    assert {finding.verdict for finding in diagnosis.findings} == {Verdict.JUST_EXITED}
    assert not any(finding.leak for finding in diagnosis.findings)
    assert diagnosis.undecided == 3
    assert at(60.01) > REPORT, "the last one ended with the process"


def test_the_lists_of_the_last_moment_need_no_age_no_growth_and_no_search() -> None:
    stacks = [pthread_stack(n, started_at=59.9, exited=59.99) for n in range(3)]
    lists = thread_lists(*(listed_thread(span(stack)) for stack in stacks))
    diagnosis = judge(stacks, lists, target_exited_at=REPORT, lists_final=True)
    found = only(diagnosis)
    assert (found.verdict, found.leak, found.count) == (Verdict.NEVER_JOINED, True, 3)
    assert found.certainty is Certainty.PROVED
    assert diagnosis.undecided == 0


def test_by_the_lists_of_the_last_moment_the_others_were_joined() -> None:
    stack = pthread_stack(0, started_at=59.9, exited=59.99)
    diagnosis = judge([stack], thread_lists(), target_exited_at=REPORT, lists_final=True)
    assert only(diagnosis).verdict is Verdict.STACK_CACHE
    assert diagnosis.undecided == 0


def test_musl_keeps_no_stack_so_what_was_at_the_end_was_never_joined() -> None:
    stack = pthread_stack(0, flags=0x22, clone3=False, started_at=59.9, exited=59.99)
    found = only(judge([stack], MUSL, target_exited_at=REPORT))
    assert (found.verdict, found.leak, found.certainty) == (Verdict.NEVER_JOINED, True, Certainty.PROVED)


def test_stacks_cached_by_the_last_lists_are_no_leak() -> None:
    stack = pthread_stack(0, started_at=10, exited=11)
    diagnosis = judge([stack], thread_lists(stack_cache=(span(stack),)), **ENDED)
    assert only(diagnosis).verdict is Verdict.STACK_CACHE
    assert diagnosis.undecided == 0


def test_without_any_lists_stacks_that_a_cache_may_hold_are_undecided() -> None:
    stack = pthread_stack(0, started_at=10, exited=11)
    diagnosis = judge([stack], ABSENT, target_exited_at=REPORT)
    assert only(diagnosis).verdict is Verdict.STACK_CACHE
    assert diagnosis.undecided == 1


def awaited_in(stack: Outstanding) -> int:
    """A futex where glibc keeps the descriptor of the thread on this stack."""
    return span(stack).end - 0x600


@pytest.mark.parametrize("is_musl", [False, True])
@pytest.mark.parametrize("runs_on", [False, True])
def test_threads_that_would_have_been_joined_next_are_undecided(is_musl: bool, runs_on: bool) -> None:
    """A signal ends the process while it joins the first of them, which runs or has just exited."""
    shape = {"flags": 0x22, "clone3": False} if is_musl else {}
    first = pthread_stack(0, started_at=10, exited=None if runs_on else 59, site=THREAD_SITE, **shape)
    waiting = [pthread_stack(n, started_at=10, exited=20, site=THREAD_SITE, **shape) for n in (1, 2)]
    others = [pthread_stack(n, started_at=10, exited=20, **shape) for n in (3, 4, 5)]
    unjoined = thread_lists(
        *(listed_thread(span(stack)) for stack in waiting),
        *(listed_thread(span(stack), start_routine=0x402000) for stack in others),
    )
    lists = MUSL if is_musl else unjoined
    diagnosis = judge(
        [first, *waiting, *others],
        lists,
        target_exited_at=REPORT,
        lists_final=not is_musl,
        awaited=[awaited_in(first)],
    )
    leaks = [finding.count for finding in diagnosis.findings if finding.leak]
    assert (leaks, diagnosis.undecided) == ([3], 2 + (is_musl and not runs_on))


def test_a_futex_elsewhere_is_no_join() -> None:
    stack = pthread_stack(0, started_at=10, exited=20, site=THREAD_SITE)
    on_its_stack, beside = span(stack).start + 0x8000, span(stack).end + 0x100
    lists = thread_lists(listed_thread(span(stack)))
    diagnosis = judge(
        [stack], lists, target_exited_at=REPORT, lists_final=True, awaited=[on_its_stack, beside, 0]
    )
    assert only(diagnosis).certainty is Certainty.PROVED


def test_threads_that_one_function_creates_at_several_lines_are_of_one_kind() -> None:
    def stack_of(site: int) -> Stack:
        frames = [replace(frame, offset=0x1000 * site) for frame in THREAD_STACK.frames]
        return replace(THREAD_STACK, frames=tuple(frames)) if site else Stack()

    joined, waiting = (pthread_stack(n, started_at=10, exited=(None, 20)[n], site=7 + n) for n in (0, 1))
    diagnosis = judge(
        [joined, waiting],
        thread_lists(listed_thread(span(waiting))),
        target_exited_at=REPORT,
        lists_final=True,
        awaited=[awaited_in(joined)],
        stack_of=stack_of,
    )
    assert diagnosis.undecided == 1


@pytest.mark.parametrize(("mapped", "known"), [(9.9999, True), (9.0, False)])
def test_the_mapper_of_a_stack_did_not_create_the_later_threads_on_it(mapped: float, known: bool) -> None:
    """The copy of the clone call's stack was lost; that of the mmap was not."""
    stack = pthread_stack(0, started_at=10, made=mapped, exited=20, site=THREAD_SITE)
    diagnosis = judge(
        [stack], thread_lists(listed_thread(span(stack))), target_exited_at=REPORT, lists_final=True
    )
    assert bool(only(diagnosis).stack.frames) is known
