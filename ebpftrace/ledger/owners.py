"""Who owns an outstanding mapping: the thread that runs on it, else the one that made it."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import merge

from ebpftrace.model import Mapping, Outstanding, OwnedBy, Run, Thread, ThreadId

UNKNOWN_TGID = 0
"""``tgid`` of a thread whose thread group nobody told."""


def assign(
    mappings: Sequence[Mapping], runs: Iterable[Run], threads: collections.abc.Mapping[ThreadId, Thread]
) -> list[Outstanding]:
    """Give each mapping its owner; the mappings ascend by their starts and do not overlap.

    A clone's stack is matched by containment, never by size or flags.  It counts for a mapping that
    lay there when the thread was born.  Of several threads that ran on one mapping one that lives
    wins, then the latest born: a cached stack that is reused changes owner, and a mapping from which
    many stacks are cut is nobody's leftover while one of them is in use.

    A mapper that is neither among ``threads`` nor among the runs may live or not: such a mapping has no
    owner, as nobody knows one.
    """
    runs = list(runs)
    found = {**threads, **{run.thread: _runner(run, threads) for run in runs}}
    runners: dict[int, tuple[Run, Thread]] = {}
    for index, run in _placed(runs, mappings):
        if not _was_there(mappings[index], run):
            continue
        runner = _runner(run, threads)
        if index not in runners or _rank(runner) > _rank(runners[index][1]):
            runners[index] = run, runner
    outstanding = []
    for index, mapping in enumerate(mappings):
        mapper = found.get(mapping.mapper) if mapping.mapper is not None else None
        if index in runners:
            run, runner = runners[index]
            one = Outstanding(mapping, runner, OwnedBy.RUNS_ON_IT, mapper, run)
        else:
            one = Outstanding(mapping, mapper, OwnedBy.MAPPED_IT if mapper is not None else None, mapper)
        outstanding.append(one)
    return outstanding


def _was_there(mapping: Mapping, run: Run) -> bool:
    """Say whether the mapping lay where it lies when the thread was born.

    ``since``, not ``made_at``: realloc moves large blocks by mremap, often to where a stack used to be.
    """
    return mapping.since is None or run.thread.born >= mapping.since


def _rank(thread: Thread) -> tuple[bool, int, int]:
    return thread.alive, thread.id.born, thread.id.tid


def _runner(run: Run, threads: collections.abc.Mapping[ThreadId, Thread]) -> Thread:
    """Return the thread of a run; an exit that either source knows of is true."""
    known = threads.get(run.thread)
    if known is None:
        return Thread(run.thread, run.name, run.tgid, run.exited_at, run.creator, run.creator_name)
    if known.alive and run.exited_at is not None:
        return replace(known, exited_at=run.exited_at)
    return known


def _placed(runs: Sequence[Run], mappings: Sequence[Mapping]) -> Iterator[tuple[int, Run]]:
    """Yield the runs whose stacks lie in a mapping, and its index; O(n + m log m) for m runs."""
    firsts = ((mapping.pieces[0], index) for index, mapping in enumerate(mappings))
    others = sorted((piece, index) for index, mapping in enumerate(mappings) for piece in mapping.pieces[1:])
    by_stack = sorted(((run.stack_byte, at) for at, run in enumerate(runs)), reverse=True)
    for (start, end), index in merge(firsts, others) if others else firsts:
        while by_stack and by_stack[-1][0] < end:
            byte, at = by_stack.pop()
            if byte >= start:
                yield index, runs[at]
        if not by_stack:
            return
