"""Who owns an outstanding mapping: the thread that runs on it, else the one that made it."""

from __future__ import annotations

import collections.abc
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import merge
from typing import Optional

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
    register = _Register(runs, threads)
    places = _Places(mappings)
    runners: dict[int, tuple[Run, Thread]] = {}
    for run in runs:
        index = places.find(run)
        if index is None or not _was_there(mappings[index], run):
            continue
        runner = register.runner(run)
        if index not in runners or _rank(runner) > _rank(runners[index][1]):
            runners[index] = run, runner
    return [_outstanding(mapping, runners.get(index), register) for index, mapping in enumerate(mappings)]


def _outstanding(mapping: Mapping, on_it: Optional[tuple[Run, Thread]], register: _Register) -> Outstanding:
    mapper = register.find(mapping.mapper) if mapping.mapper is not None else None
    if on_it is not None:
        run, runner = on_it
        return Outstanding(mapping, runner, OwnedBy.RUNS_ON_IT, mapper, run)
    return Outstanding(mapping, mapper, OwnedBy.MAPPED_IT if mapper is not None else None, mapper)


def _was_there(mapping: Mapping, run: Run) -> bool:
    """Say whether the mapping lay where it lies when the thread was born.

    ``since``, not ``made_at``: realloc moves large blocks by mremap, often to where a stack used to be.
    """
    return mapping.since is None or run.thread.born >= mapping.since


def _rank(thread: Thread) -> tuple[bool, int, int]:
    return thread.alive, thread.id.born, thread.id.tid


class _Register:
    """Threads by id, from the threads that are known and from the clone calls."""

    def __init__(self, runs: Iterable[Run], threads: collections.abc.Mapping[ThreadId, Thread]) -> None:
        self._threads = threads
        self._runs = {run.thread: run for run in runs}

    def find(self, thread: ThreadId) -> Optional[Thread]:
        run = self._runs.get(thread)
        return self.runner(run) if run is not None else self._threads.get(thread)

    def runner(self, run: Run) -> Thread:
        """Return the thread of a run; an exit that either source knows of is true."""
        known = self._threads.get(run.thread)
        if known is None:
            return Thread(run.thread, run.name, run.tgid, run.exited_at, run.creator, run.creator_name)
        if known.alive and run.exited_at is not None:
            return replace(known, exited_at=run.exited_at)
        return known


class _Places:
    """Finds the mapping a stack lies in, O(log n)."""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._mappings = array("L")
        """The index of the mapping that each of these pieces is of."""
        firsts = ((mapping.pieces[0], index) for index, mapping in enumerate(mappings))
        others = sorted(
            (piece, index) for index, mapping in enumerate(mappings) for piece in mapping.pieces[1:]
        )
        for piece, index in merge(firsts, others) if others else firsts:
            self._starts.append(piece.start)
            self._ends.append(piece.end)
            self._mappings.append(index)

    def find(self, run: Run) -> Optional[int]:
        """Return the index of the mapping the run's stack lies in.

        clone3 names the lowest byte of the stack; clone a pointer near the top, which for an empty
        stack is the first byte above it (clone(2)).
        """
        lowest_byte = run.stack_size > 0
        before = (bisect_right if lowest_byte else bisect_left)(self._starts, run.stack) - 1
        if before < 0:
            return None
        end = self._ends[before]
        inside = run.stack < end if lowest_byte else run.stack <= end
        return self._mappings[before] if inside else None
