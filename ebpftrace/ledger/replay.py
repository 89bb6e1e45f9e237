# SPDX-License-Identifier: Apache-2.0
"""The ledger: baseline + kernel rows + events -> outstanding mappings."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from heapq import merge
from itertools import chain
from operator import itemgetter
from typing import NamedTuple, Optional, Union

from ebpftrace.covered import Covered
from ebpftrace.ledger.effects import effects
from ebpftrace.ledger.events import Displaced, Event, Hole, Move
from ebpftrace.ledger.intervals import apart
from ebpftrace.ledger.space import BEFORE_ALL, Origin, RowKey, Space, row_key, whole_mapping
from ebpftrace.model import FailedCall, Interval, Mapping, Row, Run, Stand, Thread, ThreadId, Vma

Step = tuple[int, Union[Row, Hole, Move, Run]]
"""One change of the address space: when, as time * KINDS + kind, and what."""

HOLE, LEAVE, INSERT, ARRIVE, BIRTH = range(5)
KINDS = 5


class Leftovers(NamedTuple):
    """What the kernel keeps although nothing is left of it."""

    rows: list[Row]
    threads: list[ThreadId]
    """Exited threads of whose mappings none is left."""
    runs: list[Run]
    """Of exited threads whose stacks are gone, or were given to others after them."""
    are_all: bool
    """Nothing was too young to be judged: a later look will not find more of it."""


class Ledger:
    """What the target has mapped, as far as its calls tell; the answer does not depend on arrival order.

    The rows it is given ascend by their starts, and no two have both start and time in common.

    A row that is not among the rows any more was unmapped or moved by a call that touched nothing
    else, and is forgotten altogether, unless a ``Displaced`` event hands it over.

    **The baseline** counts as older than every event, also older than those of the time while it was
    read: an munmap that was running then must still remove what was read.  Calls between attaching and
    the end of that reading are right too as long as the kernel side takes the end of the reading
    as a hard operation, i.e. sends a ``Hole`` for the munmap of any row made before it.
    """

    def __init__(self, baseline: Iterable[Vma]) -> None:
        self._folded = Space(baseline)
        self._folded_until = BEFORE_ALL
        self._folded_rows: set[RowKey] = set()
        self._events: list[Event] = []
        self._idle: set[ThreadId] = set()
        """Exited threads of whose mappings ``leftovers`` found none."""
        self._begun_on: dict[ThreadId, Origin] = {}
        """What stood in the checkpoint and a thread was put on by then."""

    @property
    def pending(self) -> int:
        """Number of events that the next ``outstanding`` has to replay; ``compact`` lowers it."""
        return len(self._events)

    def apply(self, event: Event) -> None:
        """Take in an event, in any order."""
        self._events.append(event)

    def settle(self, failed: Iterable[FailedCall], mapped: Covered) -> None:
        """Take in what calls that failed did all the same, by what is ``mapped`` now.

        Of a call before the last ``compact`` that can't be told any more: it is left to ``verify``.
        """
        holes = [(event.at, event.interval) for event in self._events if isinstance(event, Hole)]
        moves = [(event.at, event.old) for event in self._events if isinstance(event, Move)]
        recent = [call for call in failed if call.at > self._folded_until]
        self._events += effects(recent, mapped, holes + moves)

    def compact(self, rows: Iterable[Row], now: int, runs: Iterable[Run] = ()) -> None:
        """Fold what happened up to ``now`` into a checkpoint, so that memory and work stay bounded.

        ``now`` is a time before the reading of ``rows`` and ``runs`` began, and the events sent until that
        reading ended have been applied.  A ``Hole`` older than ``now`` may still arrive later (an munmap that
        was under way sends it at its exit) and acts as if it had come in time, unless what lay around it was
        moved before ``now``.  A late ``Move`` does so unless something else was mapped at its ``old`` place
        before ``now``: let ``now`` lie about a second back, and no such call of that time is still under way.
        """
        now = self._folded_until = max(now, self._folded_until)
        alone: list[Row] = []
        runs = [run for run in runs if run.thread.born <= now]
        begun = {**self._begun_on, **self._replay(self._folded, rows, now, alone.append, runs)}
        self._folded.insert_apart(alone)
        standing = self._folded.origins()
        self._begun_on = {}
        for run in runs:
            origin = begun.get(run.thread) or self._folded.origin_at(run.stack_byte, run.thread.born)
            if origin in standing:
                self._begun_on[run.thread] = origin
        self._events = [event for event in self._events if _ends_at(event) > now]
        self._folded_rows = {row_key(row) for row in rows if row.since <= now}

    def leftovers(
        self,
        rows: Iterable[Row],
        threads: Iterable[Thread],
        runs: Iterable[Run],
        moved_break: Container[ThreadId],
        stands: Iterable[Stand] = (),
    ) -> Leftovers:
        """Return what the kernel may forget, by what the last ``compact`` of these rows found.

        The others were read together with the rows.  Who exited after the ``now`` of that ``compact`` is left
        in peace, and so is who moved the break: that is told of a thread for good.  A thread must be found
        twice: the row of its mapping is away while a mremap moves it.
        """
        standing = self._folded.rows()
        gone = [row for row in rows if row_key(row) in self._folded_rows and row_key(row) not in standing]
        gone_keys = set(map(row_key, gone))
        mappers = self._folded.mappers()
        mappers.update(row.mapper for row in rows if row_key(row) not in gone_keys)
        # What is not folded yet may still say that a row stands which is in the table no more.
        mappers.update(event.row.mapper for event in self._events if isinstance(event, Displaced))

        def ended(exited_at: Optional[int]) -> bool:
            return exited_at is not None and exited_at <= self._folded_until

        threads, runs = list(threads), list(runs)
        latest: dict[tuple[int, Optional[Origin]], ThreadId] = {}
        begun_on = self._begun_on
        for run in sorted(runs, key=lambda run: (run.thread.born, run.thread.tid)):
            latest[run.stack_byte, begun_on.get(run.thread)] = run.thread

        def stands_still(run: Run) -> bool:
            origin = begun_on.get(run.thread)
            if latest[run.stack_byte, origin] != run.thread:
                return False
            return origin is not None or self._folded.holds(run.stack_byte)

        gone_runs = [run for run in runs if ended(run.exited_at) and not stands_still(run)]
        # Whose stack stands must be named, too.
        mappers.update({run.thread for run in runs}.difference(run.thread for run in gone_runs))
        mappers.update(stand.thread for stand in stands if self._folded.origin_at(stand.stack_byte, stand.at))
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

    def outstanding(self, rows: Iterable[Row], runs: Iterable[Run] = ()) -> list[Mapping]:
        """Return what is mapped according to the rows and all events so far, by address; changes nothing.

        ``runs``: who was put on a stack, to be told with what is left of it (``Mapping.runners``).
        """
        space = self._folded.copy()
        whole: list[Mapping] = []
        begun = dict(self._begun_on)
        begun.update(self._replay(space, rows, None, lambda row: whole.append(whole_mapping(row)), runs))
        runners: dict[Origin, list[ThreadId]] = {}
        for thread, origin in begun.items():
            runners.setdefault(origin, []).append(thread)
        return sorted([*whole, *space.mappings(runners)], key=itemgetter(0))

    def _replay(
        self,
        space: Space,
        rows: Iterable[Row],
        until: Optional[int],
        leave: Callable[[Row], object],
        runs: Iterable[Run],
    ) -> dict[ThreadId, Origin]:
        """Let happen what did up to ``until``, but leave to the caller the rows that nothing else touches.

        They are most, and no order matters to them; they ascend.  Returns what the threads of ``runs`` were
        put on, as far as it is not one of those.
        """
        displaced = {event.row for event in self._events if isinstance(event, Displaced)}
        keys = set(map(row_key, displaced))
        seen = self._folded_rows
        space.settle(seen.intersection(map(row_key, rows)) if seen else set(), keys)
        rest: list[Row] = []
        for row, is_alone in apart(
            ((row.start, row.start + row.length, row) for row in _unknown(rows, seen | keys, until)),
            chain(
                space.ranges(),
                ((row.start, row.start + row.length) for row in displaced),
                chain.from_iterable(map(_reaches, self._events)),
            ),
        ):
            (leave if is_alone else rest.append)(row)
        # Of the rows that the checkpoint has seen, it knows what is left.
        rest += _unknown(displaced, seen, until)
        steps: list[Step] = [(row.since * KINDS + INSERT, row) for row in rest]
        for event in self._events:
            if isinstance(event, Hole):
                steps.append((event.at * KINDS + HOLE, event))
            elif isinstance(event, Move):
                steps.append((event.at * KINDS + LEAVE, event))
                steps.append((event.done_at * KINDS + ARRIVE, event))
        steps.sort()
        births = sorted(((run.thread.born * KINDS + BIRTH, run) for run in runs), key=itemgetter(0))
        begun: dict[ThreadId, Origin] = {}
        for when, subject in merge(steps, births, key=itemgetter(0)):
            if until is not None and when // KINDS > until:
                break
            if isinstance(subject, Run):
                origin = space.origin_at(subject.stack_byte, subject.thread.born)
                if origin is not None:
                    begun[subject.thread] = origin
            elif isinstance(subject, Hole):
                space.dig(*subject.interval, subject.at)
            elif isinstance(subject, Row):
                space.insert(subject, subject not in displaced)
            elif when % KINDS == LEAVE:
                space.leave(subject)
            else:
                space.arrive(subject)
        return begun


def _unknown(rows: Iterable[Row], known: set[RowKey], until: Optional[int]) -> Iterable[Row]:
    """Return the rows that are not among those, and came no later than ``until``."""
    if known:
        rows = (row for row in rows if row_key(row) not in known)
    return rows if until is None else (row for row in rows if row.since <= until)


def _reaches(event: Event) -> tuple[Interval, ...]:
    """Return where the event may change or look at something; a displaced row counts by itself."""
    if isinstance(event, Displaced):
        return ()
    if isinstance(event, Hole):
        return (event.interval,)
    old, new = event.old, event.new
    # What a plain move brings is as long as ``old``, and in place its last byte is looked at.
    return Interval(old.start - 1, old.end + 1), Interval(new.start, max(new.end, new.start + old.size))


def _ends_at(event: Event) -> int:
    """Return the time of the last step of the event."""
    if isinstance(event, Displaced):
        return event.row.since
    return event.done_at if isinstance(event, Move) else event.at
