# SPDX-License-Identifier: Apache-2.0
"""Stacks as mappings from glibc's lists and clone calls, against a plain model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.ledger.thread_stacks import thread_stacks
from ebpftrace.model import Interval, ListedThread, ReadState, ThreadId, ThreadLists, ThreadStart

STACK = 1 << 20
CREATOR = ThreadId(1, 1)


def stack(number: int) -> Interval:
    return Interval(number * STACK, (number + 1) * STACK)


def lists(in_use: set[int], cached: set[int], state: ReadState = ReadState.READ) -> ThreadLists:
    threads = tuple(
        ListedThread(stack(n).end - 2304, 0, 0x401000, stack(n), user_stack=False, exited=True)
        for n in in_use
    )
    return ThreadLists(state, threads=threads, stack_cache=tuple(map(stack, cached)))


def run(number: int, started_at: int) -> ThreadStart:
    """A thread on a stack without its guard, as clone3 receives it."""
    begins = stack(number).start + 4096
    return ThreadStart(
        ThreadId(100 + started_at, started_at), "worker", begins, STACK - 8192, None, CREATOR, "main"
    )


numbers = st.sets(st.integers(1, 12))


@given(numbers, numbers, numbers, st.lists(st.integers(0, 14), max_size=20))
def test_what_glibc_lists_was_mapped_before_or_for_its_first_thread(
    in_use: set[int], cached: set[int], earlier: set[int], created_on: list[int]
) -> None:
    cached -= in_use
    runs = [run(number, started_at) for started_at, number in enumerate(created_on, start=1)]
    found = thread_stacks(lists(in_use, cached), lists(earlier, set()), runs)
    first = {number: started_at for started_at, number in reversed(list(enumerate(created_on, start=1)))}
    expected = [
        (stack(number), None if number in earlier else first.get(number))
        for number in sorted(in_use | cached)
    ]
    assert [(mapping.pieces, mapping.made_at) for mapping in found] == [
        ((area,), at) for area, at in expected
    ]
    assert all((mapping.mapper == CREATOR) is (mapping.made_at is not None) for mapping in found)


@given(numbers, numbers, st.sampled_from([ReadState.ABSENT, ReadState.UNSTABLE]))
def test_without_lists_nothing_is_known(in_use: set[int], cached: set[int], state: ReadState) -> None:
    assert thread_stacks(lists(in_use, cached, state), lists(set(), set()), [run(1, 1)]) == []


def test_a_pool_in_which_the_application_gave_a_stack_is_no_stack() -> None:
    pool = Interval(0, 64 * STACK)
    thread = ListedThread(2 * STACK - 2304, 0, 0x401000, pool, user_stack=True, exited=True)
    own = ListedThread(stack(70).end - 2304, 0, 0x401000, stack(70), user_stack=True, exited=True)
    found = thread_stacks(
        ThreadLists(ReadState.READ, threads=(thread, own)), ThreadLists(ReadState.ABSENT), [run(70, 5)]
    )
    assert [(mapping.pieces, mapping.made_at) for mapping in found] == [((stack(70),), 5)]
