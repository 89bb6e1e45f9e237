# SPDX-License-Identifier: Apache-2.0
"""The stacks of threads as mappings, where no system call was traced: by glibc's lists and clone calls alone.

A stack may have been unmapped, and its place mapped anew, without anybody noticing.  So only those count that
glibc itself lists, in use or cached, when it is asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Optional

from ebpftrace.callflags import MAP_ANONYMOUS, MAP_PRIVATE, MAP_STACK
from ebpftrace.model import Books, BooksState, Interval, Mapping, Run

_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK
"""Of every stack that glibc maps (nptl/allocatestack.c, allocate_stack)."""


def thread_stacks(lists: Books, earlier: Books, runs: Sequence[Run]) -> list[Mapping]:
    """The stacks that glibc lists, ascending, none of which overlap another.

    ``earlier`` are the lists when the trace began: what is on them was mapped before.  ``runs`` are the
    threads that were created since: a stack that is not on ``earlier`` was mapped for the first of its, or
    by the application, which gave it to that thread.  Empty where the lists could not be read.
    """
    if lists.state is not BooksState.READ:
        return []
    before = set(_listed(earlier)) if earlier.state is BooksState.READ else set()
    stacks = _apart(_listed(lists))
    users = _users(stacks, runs)
    return [
        _mapping(stack, None if stack in before else users.get(index)) for index, stack in enumerate(stacks)
    ]


def _listed(lists: Books) -> list[Interval]:
    in_use = (thread.stack for thread in lists.threads if thread.extent_known)
    return [*(stack for stack in in_use if stack is not None), *lists.stack_cache]


def _apart(stacks: Iterable[Interval]) -> list[Interval]:
    """Ascending, without what overlaps the one before: lists that say so are wrong there."""
    apart: list[Interval] = []
    for stack in sorted(set(stacks)):
        if not apart or stack.start >= apart[-1].end:
            apart.append(stack)
    return apart


def _users(stacks: Sequence[Interval], runs: Sequence[Run]) -> dict[int, Run]:
    """The first thread that was created on each, by the position of the stack."""
    starts = [stack.start for stack in stacks]
    users: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        index = bisect_right(starts, run.stack_byte) - 1
        if index >= 0 and run.stack_byte < stacks[index].end:
            users[index].append(run)
    return {index: min(on_it, key=lambda run: run.thread.born) for index, on_it in users.items()}


def _mapping(stack: Interval, first: Optional[Run]) -> Mapping:
    if first is None:
        return Mapping((stack,), None, None, None, None, 0)
    born = first.thread.born
    return Mapping((stack,), born, first.creator, None, _FLAGS, 0, born, stack)
