# SPDX-License-Identifier: Apache-2.0
"""Who owns an outstanding mapping: the thread that runs on it, else the one that made it."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import TypeVar

from ebpftrace.model import Mapping, Outstanding, OwnedBy, Run, Stand, Thread, ThreadId

T = TypeVar("T")

UNKNOWN_TGID = 0
"""``tgid`` of a thread whose thread group nobody told."""


def assign(
    mappings: Sequence[Mapping],
    runs: Iterable[Run],
    threads: collections.abc.Mapping[ThreadId, Thread],
    stands: Iterable[Stand] = (),
) -> list[Outstanding]:
    """Give each mapping its owner; the mappings ascend by their starts and do not overlap.

    A clone's stack is matched by containment, never by size or flags, or by what the ledger says the thread
    was put on (``Mapping.runners``).  It counts for a mapping that lay there when the thread was born.  Of
    several threads that ran on one mapping one that lives wins, then the latest born: a cached stack that is
    reused changes owner, and a mapping from which many stacks are cut is nobody's leftover while one of them
    is in use.  A child that was put on its creator's own stack, as musl's posix_spawn does, leaves nothing
    behind.

    Where nobody was put, who stood there by himself (``stands``) owns what was mapped in the window.

    A mapper that is neither among ``threads`` nor among the runs may live or not: such a mapping has no
    owner, as nobody knows one.
    """
    runs = list(runs)
    found = {**threads, **{run.thread: _runner(run, threads) for run in runs}}
    runners: dict[int, tuple[Run, Thread]] = {}
    for index, run in chain(_placed(runs, mappings), _told(runs, mappings)):
        if not _was_there(mappings[index], run):
            continue
        runner = _runner(run, threads)
        if not runner.alive and _is_lent(mappings[index], run):
            continue
        if index not in runners or _rank(runner) > _rank(runners[index][1]):
            runners[index] = run, runner
    standers: dict[int, tuple[int, Thread]] = {}
    for index, stand in _located(((stand.stack_byte, stand) for stand in stands), mappings):
        since, stander = mappings[index].since, found.get(stand.thread)
        if index in runners or stander is None or since is None or stand.at < since:
            continue
        if index not in standers or (stander.alive, stand.at) > (
            standers[index][1].alive,
            standers[index][0],
        ):
            standers[index] = stand.at, stander
    outstanding = []
    for index, mapping in enumerate(mappings):
        mapper = found.get(mapping.mapper) if mapping.mapper is not None else None
        if index in runners:
            run, runner = runners[index]
            one = Outstanding(mapping, runner, OwnedBy.RUNS_ON_IT, mapper, run)
        elif index in standers:
            one = Outstanding(mapping, standers[index][1], OwnedBy.STOOD_ON_IT, mapper)
        else:
            one = Outstanding(mapping, mapper, OwnedBy.MAPPED_IT if mapper is not None else None, mapper)
        outstanding.append(one)
    return outstanding


def _is_lent(mapping: Mapping, run: Run) -> bool:
    """Whether the creator stood on the same mapping, and so can't have meant all of it for the child."""
    stood = run.creator_stack_pointer
    return stood != 0 and any(piece.start <= stood < piece.end for piece in mapping.pieces)


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
    """Yield the runs whose stacks lie in a mapping, and its index."""
    return _located(((run.stack_byte, run) for run in runs), mappings)


def _told(runs: Sequence[Run], mappings: Sequence[Mapping]) -> Iterator[tuple[int, Run]]:
    """Yield the runs that the ledger tells with a mapping, and its index."""
    by_thread: dict[ThreadId, Run] = {}
    for index, mapping in enumerate(mappings):
        if mapping.runners:
            by_thread = by_thread or {run.thread: run for run in runs}
            yield from ((index, by_thread[thread]) for thread in mapping.runners if thread in by_thread)


def _located(addressed: Iterable[tuple[int, T]], mappings: Sequence[Mapping]) -> Iterator[tuple[int, T]]:
    """Yield what has its address in a mapping, and the mapping's index; O(n + m log m) for m addresses."""
    firsts = ((mapping.pieces[0], index) for index, mapping in enumerate(mappings))
    others = sorted((piece, index) for index, mapping in enumerate(mappings) for piece in mapping.pieces[1:])
    waiting = sorted(addressed, key=itemgetter(0), reverse=True)
    if not waiting:
        return
    for (start, end), index in merge(firsts, others) if others else firsts:
        while waiting and waiting[-1][0] < end:
            address, one = waiting.pop()
            if address >= start:
                yield index, one
        if not waiting:
            return
