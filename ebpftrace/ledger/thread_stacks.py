# SPDX-License-Identifier: Apache-2.0
"""The stacks of threads as mappings, from glibc's lists and clone calls, where mmap was not traced.

A stack may have been unmapped, and its addresses mapped again, unnoticed.  So only stacks count that glibc
lists, as used or cached, at the time of the reading.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Optional

from ebpftrace.callflags import MAP_ANONYMOUS, MAP_PRIVATE, MAP_STACK
from ebpftrace.model import Interval, Mapping, ReadState, ThreadLists, ThreadStart

_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK
"""The flags of every stack that glibc maps (nptl/allocatestack.c, allocate_stack)."""


def thread_stacks(lists: ThreadLists, earlier: ThreadLists, runs: Sequence[ThreadStart]) -> list[Mapping]:
    """Return the stacks that glibc lists, ascending and disjoint; none if the lists could not be read.

    ``earlier`` are the lists at the begin of the trace: their stacks were mapped before it.  ``runs`` are the
    threads created since: any other stack was mapped, by glibc or the application, for the first thread on
    it.
    """
    if lists.state is not ReadState.READ:
        return []
    before = set(_listed(earlier)) if earlier.state is ReadState.READ else set()
    stacks = _isolated(_listed(lists))
    users = _users(stacks, runs)
    return [
        _mapping(stack, None if stack in before else users.get(index)) for index, stack in enumerate(stacks)
    ]


def _listed(lists: ThreadLists) -> list[Interval]:
    in_use = (thread.stack for thread in lists.threads if thread.extent_known)
    return [*(stack for stack in in_use if stack is not None), *lists.stack_cache]


def _isolated(stacks: Iterable[Interval]) -> list[Interval]:
    """Return the stacks, ascending, without those that overlap the one before: there the lists are wrong."""
    isolated: list[Interval] = []
    for stack in sorted(set(stacks)):
        if not isolated or stack.start >= isolated[-1].end:
            isolated.append(stack)
    return isolated


def _users(stacks: Sequence[Interval], runs: Sequence[ThreadStart]) -> dict[int, ThreadStart]:
    """Return the first thread that was created on each stack, by the stack's position."""
    starts = [stack.start for stack in stacks]
    users: dict[int, list[ThreadStart]] = defaultdict(list)
    for run in runs:
        index = bisect_right(starts, run.stack_byte) - 1
        if index >= 0 and run.stack_byte < stacks[index].end:
            users[index].append(run)
    return {index: min(on_it, key=lambda run: run.thread.started_at) for index, on_it in users.items()}


def _mapping(stack: Interval, first: Optional[ThreadStart]) -> Mapping:
    if first is None:
        return Mapping((stack,), None, None, None, None, 0)
    started_at = first.thread.started_at
    return Mapping((stack,), started_at, first.creator, None, _FLAGS, 0, started_at, stack)
