# SPDX-License-Identifier: Apache-2.0
"""The owner of an outstanding mapping (the thread that runs on it, else the one that mapped it), and sums."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import Callable, TypeVar

from ebpftrace.model import (
    NO_STACK,
    Mapping,
    Outstanding,
    OwnedBy,
    Stack,
    StackSighting,
    Thread,
    ThreadId,
    ThreadStart,
    ThreadTotal,
)

T = TypeVar("T")

UNKNOWN_TGID = 0
"""``tgid`` of a thread whose thread group is not known."""


def assign(
    mappings: Sequence[Mapping],
    runs: Iterable[ThreadStart],
    threads: collections.abc.Mapping[ThreadId, Thread],
    sightings: Iterable[StackSighting] = (),
) -> list[Outstanding]:
    """Give each mapping its owner; the mappings ascend by their starts and do not overlap.

    A clone's stack belongs to the mapping that contains it (size and flags prove nothing), or to the one that
    the ledger recorded when the thread started (``Mapping.stack_users``), if that mapping existed when the
    thread started.  Of several threads on one mapping a living one wins, then the one that started last: a
    cached stack that is reused changes its owner, and a mapping that serves as many stacks is in use as long
    as one of them is.  A child that was given a part of its creator's own stack (musl's posix_spawn) owns
    nothing.

    A mapping that was given to no thread, but on which a thread was seen to run (``sightings``), belongs to
    that thread if it was made in the window.

    A mapper that is neither among ``threads`` nor among ``runs`` may be alive or not: its mappings have no
    owner.
    """
    runs = list(runs)
    found = {**threads, **{run.thread: _stack_user(run, threads) for run in runs}}
    stack_users: dict[int, tuple[ThreadStart, Thread]] = {}
    for index, run in chain(_containing(runs, mappings), _recorded(runs, mappings)):
        if not _existed(mappings[index], run):
            continue
        user = _stack_user(run, threads)
        if not user.alive and _is_lent(mappings[index], run):
            continue
        if index not in stack_users or _rank(user) > _rank(stack_users[index][1]):
            stack_users[index] = run, user
    seen: dict[int, tuple[bool, int, Thread]] = {}
    for index, sighting in _located(((each.stack_byte, each) for each in sightings), mappings):
        since, thread = mappings[index].since, found.get(sighting.thread)
        if index in stack_users or thread is None or since is None or sighting.at < since:
            continue
        if index not in seen or (thread.alive, sighting.at) > seen[index][:2]:
            seen[index] = thread.alive, sighting.at, thread
    outstanding = []
    for index, mapping in enumerate(mappings):
        mapper = found.get(mapping.mapper) if mapping.mapper is not None else None
        if index in stack_users:
            run, user = stack_users[index]
            owned = Outstanding(mapping, user, OwnedBy.RUNS_ON_IT, mapper, run)
        elif index in seen:
            owned = Outstanding(mapping, seen[index][2], OwnedBy.SWITCHED_TO_IT, mapper)
        else:
            owned = Outstanding(mapping, mapper, OwnedBy.MAPPED_IT if mapper is not None else None, mapper)
        outstanding.append(owned)
    return outstanding


def _is_lent(mapping: Mapping, run: ThreadStart) -> bool:
    """Whether the creator itself ran on the mapping, and so did not give all of it to the child."""
    creator_sp = run.creator_stack_pointer
    return creator_sp != 0 and any(piece.start <= creator_sp < piece.end for piece in mapping.pieces)


def _existed(mapping: Mapping, run: ThreadStart) -> bool:
    """Say whether the mapping was at its present address when the thread started.

    ``since``, not ``made_at``: realloc moves large blocks by mremap, often to a former stack's address.
    """
    return mapping.since is None or run.thread.started_at >= mapping.since


def _rank(thread: Thread) -> tuple[bool, int, int]:
    return thread.alive, thread.id.started_at, thread.id.tid


def _stack_user(run: ThreadStart, threads: collections.abc.Mapping[ThreadId, Thread]) -> Thread:
    """Return the thread of a run; it has exited if either source says so."""
    known = threads.get(run.thread)
    if known is None:
        creator = threads.get(run.creator)
        return Thread(
            run.thread,
            run.name,
            run.tgid,
            run.exited_at,
            run.creator,
            run.creator_name,
            inner_tid=run.inner_tid,
            creator_inner_tid=creator.inner_tid if creator is not None else None,
        )
    if known.alive and run.exited_at is not None:
        return replace(known, exited_at=run.exited_at, inner_tid=run.inner_tid)
    return known


def _containing(
    runs: Sequence[ThreadStart], mappings: Sequence[Mapping]
) -> Iterator[tuple[int, ThreadStart]]:
    """Yield each run whose stack lies in a mapping, after the mapping's index."""
    return _located(((run.stack_byte, run) for run in runs), mappings)


def _recorded(runs: Sequence[ThreadStart], mappings: Sequence[Mapping]) -> Iterator[tuple[int, ThreadStart]]:
    """Yield each run that the ledger recorded with a mapping, after the mapping's index."""
    by_thread: dict[ThreadId, ThreadStart] = {}
    for index, mapping in enumerate(mappings):
        if mapping.stack_users:
            by_thread = by_thread or {run.thread: run for run in runs}
            yield from ((index, by_thread[thread]) for thread in mapping.stack_users if thread in by_thread)


def _located(addressed: Iterable[tuple[int, T]], mappings: Sequence[Mapping]) -> Iterator[tuple[int, T]]:
    """Yield each item whose address lies in a mapping, after its index; O(n + m log m) for m addresses."""
    firsts = ((mapping.pieces[0], index) for index, mapping in enumerate(mappings))
    others = sorted((piece, index) for index, mapping in enumerate(mappings) for piece in mapping.pieces[1:])
    waiting = sorted(addressed, key=itemgetter(0), reverse=True)
    if not waiting:
        return
    for (start, end), index in merge(firsts, others) if others else firsts:
        while waiting and waiting[-1][0] < end:
            address, item = waiting.pop()
            if address >= start:
                yield index, item
        if not waiting:
            return


@dataclass
class _Sum:
    """The mappings of one thread added up."""

    thread: Thread
    mappings: int = 0
    by_site: dict[int, int] = field(default_factory=dict)

    def stack(self, stack_of: Callable[[int], Stack]) -> Stack:
        """Return the call stack of the site with most bytes; sites without a stack are passed over."""
        most_first = sorted(self.by_site, key=self.by_site.__getitem__, reverse=True)
        stacks = (stack_of(site) for site in most_first if site)
        return next((stack for stack in stacks if stack.frames), NO_STACK)


def totals(
    outstanding: Iterable[Outstanding],
    threads: collections.abc.Mapping[ThreadId, Thread],
    brk_growth: collections.abc.Mapping[ThreadId, int],
    stack_of: Callable[[int], Stack],
) -> list[ThreadTotal]:
    """Return the totals of each owner, most bytes first; mappings without an owner are left out.

    ``brk_growth``: net bytes by which a thread moved the break.  A thread that only did that has no mappings.
    ``stack_of``: site -> stack, NO_STACK where unknown.
    """
    sums: dict[ThreadId, _Sum] = {}
    for mapping, owner, _, _, _ in outstanding:
        if owner is None:
            continue
        total = sums.get(owner.id)
        if total is None:
            total = sums[owner.id] = _Sum(owner)
        total.mappings += 1
        site = mapping.site
        total.by_site[site] = total.by_site.get(site, 0) + mapping.size
    for thread in brk_growth:
        if thread in threads:
            sums.setdefault(thread, _Sum(threads[thread]))
    found = [
        ThreadTotal(
            thread=total.thread,
            mappings=total.mappings,
            size=sum(total.by_site.values()),
            brk_growth=brk_growth.get(thread, 0),
            stack=total.stack(stack_of),
        )
        for thread, total in sums.items()
    ]
    return sorted(found, key=lambda total: (-total.size, -total.mappings, total.thread.id))
