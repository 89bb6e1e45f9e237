# SPDX-License-Identifier: Apache-2.0
"""The ledger: baseline + kernel rows + events -> outstanding mappings."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, Optional, Union

from ebpftrace.addresses import RangeSet, isolated
from ebpftrace.ledger.effects import effects
from ebpftrace.ledger.events import Event, Evicted, Remapped, Unmapped
from ebpftrace.ledger.space import BEFORE_ALL, RowKey, RowOrigin, Space, row_key, whole_mapping
from ebpftrace.model import (
    FailedCall,
    Interval,
    Mapping,
    Row,
    StackSighting,
    Thread,
    ThreadId,
    ThreadStart,
    Vma,
)

Step = tuple[int, Union[Row, Unmapped, Remapped, ThreadStart]]
"""One change of the address space, after its position in time: nanoseconds * KINDS + kind."""

UNMAPPED, MOVE_BEGINS, INSERT, MOVE_ENDS, START = range(5)
KINDS = 5


class Leftovers(NamedTuple):
    """Entries of the BPF maps that the report needs no longer."""

    rows: list[Row]
    """Rows of mappings that are unmapped."""
    threads: list[ThreadId]
    """Exited threads all of whose mappings are unmapped."""
    runs: list[ThreadStart]
    """Runs of exited threads whose stacks are unmapped, or were given to other threads since."""
    are_all: bool
    """No entry was too young to be judged: until something else happens there is nothing more to find."""


class Ledger:
    """What the target has mapped according to its calls; the answer does not depend on arrival order.

    The rows it is given ascend by their starts, and no two have both start and time in common.

    A row that is missing from the rows was unmapped or moved whole, by a call that touched nothing
    else, and is forgotten, unless an ``Evicted`` event brought it.

    **The baseline** counts as older than every event, also than those from the time while it was read: an
    munmap that was running then must still remove what was read.  Calls between attaching and the end of that
    reading are right as well, because the BPF programs send an ``Unmapped`` for the munmap of every row that
    was made before the end of the reading (``is_clean`` in bpf/rows.h).
    """

    def __init__(self, baseline: Iterable[Vma]) -> None:
        self._folded = Space(baseline)
        self._folded_until = BEFORE_ALL
        self._folded_rows: set[RowKey] = set()
        self._events: list[Event] = []
        self._idle: set[ThreadId] = set()
        """Exited threads for which the last ``leftovers`` found no mapping."""
        self._started_on: dict[ThreadId, RowOrigin] = {}
        """The origin in the checkpoint on which each thread was started."""

    @property
    def pending(self) -> int:
        """Number of events that the next ``outstanding`` has to replay; ``compact`` lowers it."""
        return len(self._events)

    def apply(self, event: Event) -> None:
        """Add an event; they may come in any order."""
        self._events.append(event)

    def resolve_failed(self, failed: Iterable[FailedCall], mapped: RangeSet) -> None:
        """Add what failed calls unmapped or moved, judged by what is ``mapped`` now.

        For a call before the last ``compact`` that is no longer possible: ``verify`` removes what it
        unmapped.
        """
        unmapped = [(event.at, event.interval) for event in self._events if isinstance(event, Unmapped)]
        moves = [(event.at, event.old) for event in self._events if isinstance(event, Remapped)]
        recent = [call for call in failed if call.at > self._folded_until]
        self._events += effects(recent, mapped, unmapped + moves)

    def compact(self, rows: Iterable[Row], now: int, runs: Iterable[ThreadStart] = ()) -> None:
        """Fold what happened up to ``now`` into a checkpoint, so that memory and work stay bounded.

        ``now`` is a time before the reading of ``rows`` and ``runs`` began, and the events sent until that
        reading ended have been applied.  An ``Unmapped`` older than ``now`` may still arrive later (an munmap
        sends it at its exit) and acts as if it had come in time, unless a mapping around it was moved before
        ``now``.  So does a late ``Remapped``, unless something else was mapped at ``old`` before ``now``.
        With a ``now`` about a second back, all such calls have ended.
        """
        now = self._folded_until = max(now, self._folded_until)
        alone: list[Row] = []
        runs = [run for run in runs if run.thread.started_at <= now]
        started_on = {**self._started_on, **self._replay(self._folded, rows, now, alone.append, runs)}
        self._folded.insert_separately(alone)
        present = self._folded.origins()
        self._started_on = {}
        for run in runs:
            origin = started_on.get(run.thread)
            origin = origin or self._folded.origin_at(run.stack_byte, run.thread.started_at)
            if origin in present:
                self._started_on[run.thread] = origin
        self._events = [event for event in self._events if _ends_at(event) > now]
        self._folded_rows = {row_key(row) for row in rows if row.since <= now}

    def leftovers(
        self,
        rows: Iterable[Row],
        threads: Iterable[Thread],
        runs: Iterable[ThreadStart],
        moved_break: Container[ThreadId],
        sightings: Iterable[StackSighting] = (),
    ) -> Leftovers:
        """Return what the BPF maps may drop, judged by the last ``compact``, which had the same ``rows``.

        ``threads``, ``runs`` and ``sightings`` were read together with the rows.  Threads are kept if they
        exited after the ``now`` of that ``compact``, or moved the break (that is reported for the whole
        trace). A thread must be idle in two calls: during a mremap the row of its mapping is briefly missing.
        """
        present = self._folded.rows()
        gone = [row for row in rows if row_key(row) in self._folded_rows and row_key(row) not in present]
        gone_keys = set(map(row_key, gone))
        mappers = self._folded.mappers()
        mappers.update(row.mapper for row in rows if row_key(row) not in gone_keys)
        # An event that is not folded yet may bring back a row that is no longer in the BPF map.
        mappers.update(event.row.mapper for event in self._events if isinstance(event, Evicted))

        def ended(exited_at: Optional[int]) -> bool:
            return exited_at is not None and exited_at <= self._folded_until

        threads, runs = list(threads), list(runs)
        latest: dict[tuple[int, Optional[RowOrigin]], ThreadId] = {}
        started_on = self._started_on
        for run in sorted(runs, key=lambda run: (run.thread.started_at, run.thread.tid)):
            latest[run.stack_byte, started_on.get(run.thread)] = run.thread

        def has_stack(run: ThreadStart) -> bool:
            origin = started_on.get(run.thread)
            if latest[run.stack_byte, origin] != run.thread:
                return False
            return origin is not None or self._folded.contains(run.stack_byte)

        gone_runs = [run for run in runs if ended(run.exited_at) and not has_stack(run)]
        # The report names the threads whose stacks are still mapped.
        mappers.update({run.thread for run in runs}.difference(run.thread for run in gone_runs))
        mappers.update(seen.thread for seen in sightings if self._folded.origin_at(seen.stack_byte, seen.at))
        idle_before = self._idle
        self._idle = {
            thread.id
            for thread in threads
            if ended(thread.exited_at) and thread.id not in mappers and thread.id not in moved_break
        }
        exits = [*(thread.exited_at for thread in threads), *(run.exited_at for run in runs)]
        return Leftovers(
            rows=gone,
            threads=sorted(idle_before & self._idle),
            runs=gone_runs,
            are_all=not self._events
            and self._idle <= idle_before
            and all(exited_at is None or ended(exited_at) for exited_at in exits)
            and all(row_key(row) in self._folded_rows for row in rows),
        )

    def outstanding(
        self, rows: Iterable[Row], runs: Iterable[ThreadStart] = (), until: Optional[int] = None
    ) -> list[Mapping]:
        """Return what is mapped according to the rows and all events so far, by address; changes nothing.

        ``runs``: threads that were given a stack; ``Mapping.stack_users`` of that stack will name them.
        ``until``: return what was mapped at this moment, in ns of CLOCK_MONOTONIC, which is later than the
        last ``compact`` and not before the baseline; ``rows`` were read soon after it.
        """
        space = self._folded.copy()
        whole: list[Mapping] = []
        started_on = dict(self._started_on)
        started_on.update(
            self._replay(space, rows, until, lambda row: whole.append(whole_mapping(row)), runs)
        )
        stack_users: dict[RowOrigin, list[ThreadId]] = {}
        for thread, origin in started_on.items():
            stack_users.setdefault(origin, []).append(thread)
        return sorted([*whole, *space.mappings(stack_users)], key=itemgetter(0))

    def _replay(
        self,
        space: Space,
        rows: Iterable[Row],
        until: Optional[int],
        put_alone: Callable[[Row], object],
        runs: Iterable[ThreadStart],
    ) -> dict[ThreadId, RowOrigin]:
        """Apply to ``space`` what happened up to ``until``.

        Most rows share no address with anything else, so their order does not matter: they go to
        ``put_alone``, ascending, not into ``space``.  Returns on which origin each thread of ``runs`` was
        started, except for origins that went to ``put_alone``.
        """
        evicted = {event.row for event in self._events if isinstance(event, Evicted)}
        keys = set(map(row_key, evicted))
        seen = self._folded_rows
        space.drop_rows(seen.intersection(map(row_key, rows)) if seen else set(), keys)
        rest: list[Row] = []
        for row, is_alone in isolated(
            ((row.start, row.start + row.length, row) for row in _unknown(rows, seen | keys, until)),
            chain(
                space.ranges(),
                ((row.start, row.start + row.length) for row in evicted),
                chain.from_iterable(map(_affected, self._events)),
            ),
        ):
            (put_alone if is_alone else rest.append)(row)
        # What is left of the rows in ``seen`` is in the checkpoint already.
        rest += _unknown(evicted, seen, until)
        steps: list[Step] = [(row.since * KINDS + INSERT, row) for row in rest]
        for event in self._events:
            if isinstance(event, Unmapped):
                steps.append((event.at * KINDS + UNMAPPED, event))
            elif isinstance(event, Remapped):
                steps.append((event.at * KINDS + MOVE_BEGINS, event))
                steps.append((event.done_at * KINDS + MOVE_ENDS, event))
        steps.sort()
        starts = sorted(((run.thread.started_at * KINDS + START, run) for run in runs), key=itemgetter(0))
        started_on: dict[ThreadId, RowOrigin] = {}
        for when, subject in merge(steps, starts, key=itemgetter(0)):
            if until is not None and when // KINDS > until:
                break
            if isinstance(subject, ThreadStart):
                origin = space.origin_at(subject.stack_byte, subject.thread.started_at)
                if origin is not None:
                    started_on[subject.thread] = origin
            elif isinstance(subject, Unmapped):
                space.remove(*subject.interval, subject.at)
            elif isinstance(subject, Row):
                space.insert(subject, subject not in evicted)
            elif when % KINDS == MOVE_BEGINS:
                space.begin_move(subject)
            else:
                space.finish_move(subject)
        return started_on


def _unknown(rows: Iterable[Row], known: set[RowKey], until: Optional[int]) -> Iterable[Row]:
    """Return the rows that are not in ``known`` and were made no later than ``until``."""
    if known:
        rows = (row for row in rows if row_key(row) not in known)
    return rows if until is None else (row for row in rows if row.since <= until)


def _affected(event: Event) -> tuple[Interval, ...]:
    """Return the ranges that applying the event may change or read; an evicted row is counted separately."""
    if isinstance(event, Evicted):
        return ()
    if isinstance(event, Unmapped):
        return (event.interval,)
    old, new = event.old, event.new
    # A move to elsewhere fills as many bytes as ``old`` has; growth in place reads the last byte of ``old``.
    return Interval(old.start - 1, old.end + 1), Interval(new.start, max(new.end, new.start + old.size))


def _ends_at(event: Event) -> int:
    """Return the time of the last step of the event."""
    if isinstance(event, Evicted):
        return event.row.since
    return event.done_at if isinstance(event, Remapped) else event.at
