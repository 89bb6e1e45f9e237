"""Threads that exited while a loop of joins waits for another."""

from __future__ import annotations

import pytest
from diagnosis_scenes import booked, books, judge, only, pthread_stack, span

from ebpftrace.diagnosis import baseline_verdict
from ebpftrace.model import Finding, Outstanding, Verdict
from ebpftrace.vmas import Vmas

TID_FIELD = 720


def scene(exited: list[Outstanding], routine: int = 0x401000, asleep_on: int = TID_FIELD) -> Finding:
    """The finding for ``exited``, while somebody sleeps in the descriptor of a live thread."""
    live = booked(span(pthread_stack(900, exited=None)), exited=False, start_routine=routine)
    said = books(live, *(booked(span(stack)) for stack in exited))
    return only(judge(exited, said, futex_waits=frozenset([live.descriptor + asleep_on])))


def test_threads_of_the_awaited_one_s_kind_may_be_next() -> None:
    finding = scene([pthread_stack(number) for number in range(7)])
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.JUST_EXITED, False, 7)
    assert any("pthread_join waits" in line for line in finding.evidence)


@pytest.mark.parametrize(("routine", "asleep_on"), [(0x402000, TID_FIELD), (0x401000, 4000), (0x401000, -8)])
def test_a_join_of_another_kind_and_another_wait_excuse_nothing(routine: int, asleep_on: int) -> None:
    finding = scene([pthread_stack(number) for number in range(7)], routine, asleep_on)
    assert (finding.verdict, finding.leak) == (Verdict.NEVER_JOINED, True)


def test_what_grows_is_a_leak_whoever_waits() -> None:
    finding = scene([pthread_stack(number, born=5 * number, exited=5 * number + 1) for number in range(11)])
    assert (finding.verdict, finding.leak) == (Verdict.NEVER_JOINED, True)


def test_so_many_are_a_leak_whoever_waits() -> None:
    finding = scene([pthread_stack(number) for number in range(300)])
    assert (finding.verdict, finding.leak) == (Verdict.NEVER_JOINED, True)


def test_before_a_trace_too() -> None:
    live = booked(span(pthread_stack(900)), exited=False)
    said = books(live, *(booked(span(pthread_stack(number))) for number in range(3)))
    (finding,) = baseline_verdict(
        said, Vmas(), lambda _: None, said, frozenset([live.descriptor + TID_FIELD])
    )
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.JUST_EXITED, False, 3)
