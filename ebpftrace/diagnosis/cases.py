# SPDX-License-Identifier: Apache-2.0
"""Orphans as the rules see them: what the trace, glibc's books and /proc say of each, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Optional, Union

from ebpftrace.callflags import MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_SHARED, MAP_STACK, PROT_NONE
from ebpftrace.diagnosis.evidence import Evidence
from ebpftrace.diagnosis.origin import Origin, libc_of, raw_clone, stack_origin
from ebpftrace.diagnosis.ranges import PointIndex, RangeIndex, Residence, Resident, subtract
from ebpftrace.diagnosis.sites import SiteKey, Sites
from ebpftrace.diagnosis.whole_stacks import whole_stacks
from ebpftrace.model import (
    NO_STACK,
    BookedThread,
    Books,
    BooksState,
    Interval,
    Mapping,
    Orphan,
    Outstanding,
    OwnedBy,
    Reach,
    Stack,
    Suspect,
    Thread,
)
from ebpftrace.text import plural

_DESCRIPTOR = 4096
"""Bytes at the top of a stack that a C library's thread descriptor is in: 2,304 in glibc on x86-64."""


def may_be_lost(mapping: Mapping) -> bool:
    """Whether a mapping of the window is one that a pointer must keep.

    Not pieces that are laid into a reservation (MAP_FIXED: segments of libraries, heaps of runtimes), what
    nothing can touch (reservations, guards), stacks, and files.
    """
    flags, prot = mapping.flags, mapping.prot
    if flags is None or mapping.made_at is None or prot == PROT_NONE:
        return False
    if flags & (MAP_FIXED | MAP_STACK | MAP_GROWSDOWN):
        return False
    return bool(flags & (MAP_ANONYMOUS | MAP_SHARED))


class Facts(NamedTuple):
    """What is known of an orphan beside what it is; orphans that are alike share it."""

    booked: Optional[BookedThread]
    """Its exited thread on glibc's lists of stacks in use; only from books that were READ."""
    exited_at: Optional[int]
    before_attach: bool
    """The owner exited before attach, so nobody saw when."""
    is_stack: bool
    """A thread ran on it."""
    cached: bool
    """glibc has it on its list of cached stacks."""
    occupant: str
    """A live thread that is on it all the same, such as ``thread 4711``; empty where there is none."""
    origin: Origin
    """Who mapped it; UNKNOWN where it is no stack."""
    place: SiteKey
    stack: Stack
    by_clone: bool = False
    """Its thread was cloned without a thread library."""
    joined: bool = False
    """It is the application's, a pthread ran on it, and by glibc's lists this was joined or detached."""

    @property
    def exit_unseen(self) -> bool:
        """The owner exited in the window, but the trace can't say when."""
        return self.exited_at is None and not self.before_attach


class Case(NamedTuple):
    """One orphan with all that is known of it."""

    outstanding: Outstanding
    """The orphan with its owner."""
    resident: Resident
    facts: Facts
    began_at: Optional[int]
    """When it became what it is: mapped, or for a stack from before attach, taken by its last owner."""
    reach: Optional[Reach] = None
    """What the search found; None where it was not searched for."""

    @property
    def suspect(self) -> Optional[Suspect]:
        """What the search is asked; None where it could not tell anything.

        A cached stack and one of a detached thread are judged by glibc's lists alone, and memory that a live
        thread runs on is in use.
        """
        booked = self.facts.booked
        if self.facts.cached or self.facts.occupant or (booked is not None and booked.detached):
            return None
        if booked is not None:
            return Suspect(self.mapping.pieces, booked.descriptor)
        pieces = self.mapping.pieces
        if not self.facts.is_stack:
            return Suspect(pieces)
        if self.facts.by_clone:
            # clone takes the address behind the stack, which may be all that its owner keeps.
            return Suspect(pieces, reservation=Interval(self.mapping.start, self.mapping.end + 1))
        low = max(pieces[-1].start, pieces[-1].end - _DESCRIPTOR)
        return Suspect(pieces, silent=Interval(low, pieces[-1].end), joined=self.facts.joined)

    @property
    def mapping(self) -> Mapping:
        """What is left of it."""
        return self.outstanding.mapping

    @property
    def orphan(self) -> Orphan:
        """The orphan as the report shows it."""
        return Orphan(self.outstanding, *self.resident)


@dataclass(frozen=True)
class _Older:
    """A stack that was mapped before attach, whose booked thread has exited."""

    booked: BookedThread
    pieces: tuple[Interval, ...]
    inside: tuple[int, ...]
    """Positions of the outstanding mappings of the baseline that it covers."""


class Cases(NamedTuple):
    """What the rules judge."""

    orphans: list[Case]
    """Every orphan once, whatever showed it."""
    kept: list[Case]
    """Mappings of the window whose owner lives, of those that a pointer must keep."""
    live_stacks: list[Case]
    """Stacks of live threads that were created in the window."""
    notes: list[str]
    """What could not be placed."""


def collect_cases(evidence: Evidence) -> Cases:
    """All that is to be judged, with what the trace, glibc's lists and /proc say of each."""
    return _Builder(evidence).cases()


class _Builder:
    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._books = _read_threads(evidence.books)
        self._libc = libc_of(evidence.books)
        self._sites = Sites(evidence.stack_of)
        cache = evidence.books.stack_cache if evidence.books.state is BooksState.READ else ()
        used = [thread.stack for thread in self._books if thread.stack and not thread.user_stack]
        given = _given_in_parts(evidence.outstanding)
        self._outstanding = whole_stacks(evidence.outstanding, _disjoint([*cache, *used, *given]))
        self._cache = RangeIndex((interval, None) for interval in _union(cache))
        self._occupants = PointIndex(
            [(pointer, f"thread {tid}") for tid, pointer in evidence.live_stack_pointers.items()]
            + [(thread.descriptor, _live_name(thread)) for thread in self._books if not thread.exited]
        )
        self._earlier = (
            {thread.descriptor: thread for thread in _read_threads(evidence.earlier_books)}
            if evidence.earlier_books is not None and evidence.earlier_books.state is BooksState.READ
            else None
        )
        self._exits = {
            thread.id.tid: thread for thread in evidence.threads if not thread.alive and thread.before_attach
        }
        self._mapped: dict[tuple[Optional[int], bool, str, Union[int, SiteKey]], Facts] = {}
        """Of orphans that are no stacks."""
        self._residence = Residence(evidence.vmas)
        self._unplaced = 0

    @cached_property
    def _pieces(self) -> RangeIndex[int]:
        """Positions of the outstanding mappings; wanted only where the books know of exited threads."""
        return RangeIndex(
            (piece, position)
            for position, outstanding in enumerate(self._outstanding)
            for piece in outstanding.mapping.pieces
        )

    def cases(self) -> Cases:
        booked_in, elsewhere = self._place_booked()
        older = self._older_stacks(elsewhere)
        orphans = list(map(self._older_case, older))
        covered = {position for stack in older for position in stack.inside}
        kept, live_stacks = [], []
        for position, outstanding in enumerate(self._outstanding):
            booked = booked_in.get(position)
            if position in covered:
                continue
            if _is_orphan(outstanding, booked):
                orphans.append(self._case(outstanding, booked, _exit_seen(outstanding, booked), False))
            elif outstanding.owned_by is OwnedBy.RUNS_ON_IT:
                if outstanding.run is not None and outstanding.run.thread.born >= self._evidence.attached_at:
                    live_stacks.append(self._case(outstanding, None, None, False))
            elif may_be_lost(outstanding.mapping):
                kept.append(self._case(outstanding, None, None, False))
        orphans += self._stack_shaped(covered)
        return Cases(orphans, kept, live_stacks, self._notes())

    def _stack_shaped(self, covered: set[int]) -> Iterator[Case]:
        """Areas from before attach that look like stacks, where nothing better says whose they are."""
        for area in self._evidence.stack_shaped:
            inside, newer = self._split_by_age(area)
            owned = any(self._outstanding[position].owner is not None for position in inside)
            if newer or owned or not covered.isdisjoint(inside):
                continue
            mapping = Mapping((area,), None, None, None, None, 0)
            occupant = self._occupants.first_in((area,)) or ""
            place: SiteKey = ("stack-shaped", area.size)
            facts = Facts(None, None, True, True, False, occupant, Origin.UNKNOWN, place, NO_STACK)
            outstanding = Outstanding(mapping, None, OwnedBy.RUNS_ON_IT, None)
            yield Case(outstanding, self._residence.of(mapping), facts, None)

    def _notes(self) -> list[str]:
        if not self._unplaced:
            return []
        threads = plural(self._unplaced, "more thread")
        return [f"{threads} exited and were never joined, on stacks whose extent is unknown: not counted"]

    def _place_booked(self) -> tuple[dict[int, BookedThread], list[BookedThread]]:
        """Exited threads by the mapping of the window that is their stack, and those on older stacks."""
        inside: dict[int, BookedThread] = {}
        elsewhere = []
        for thread in self._books:
            if not thread.exited:
                continue
            position = self._pieces.at(thread.descriptor)
            if position is None and self._evidence.books_read_at is not None:
                continue  # unmapped after the books were read
            if position is None or self._outstanding[position].mapping.before_attach:
                elsewhere.append(thread)
            elif _is_all_stack(self._outstanding[position].mapping, thread):
                inside[position] = thread
            else:
                self._unplaced += 1
        return inside, elsewhere

    def _older_stacks(self, threads: Sequence[BookedThread]) -> list[_Older]:
        older = []
        for thread in threads:
            stack = thread.stack
            if stack is None or not thread.extent_known:
                self._unplaced += 1
                continue
            inside, made_in_window = self._split_by_age(stack)
            pieces = subtract(stack, made_in_window)
            if pieces:
                older.append(_Older(thread, pieces, inside))
        return older

    def _split_by_age(self, stack: Interval) -> tuple[tuple[int, ...], list[Interval]]:
        older, newer = [], []
        for piece, position in self._pieces.overlapping(stack):
            if self._outstanding[position].mapping.before_attach:
                older.append(position)
            else:
                newer.append(piece)
        return tuple(older), newer

    def _older_case(self, older: _Older) -> Case:
        mapping = Mapping(older.pieces, None, None, None, None, 0)
        seen = self._last_run(older)
        if seen is not None:
            owner, run = seen.owner, seen.run
        else:
            owner, run = self._watched_exit(older.booked), None
        if self._earlier is None:
            before_attach = owner is None
        else:
            earlier = self._earlier.get(older.booked.descriptor)
            before_attach = owner is None and earlier is not None and earlier.exited
        outstanding = Outstanding(mapping, owner, OwnedBy.RUNS_ON_IT, None, run)
        exited_at = owner.exited_at if owner is not None else None
        return self._case(outstanding, older.booked, exited_at, before_attach)

    def _last_run(self, older: _Older) -> Optional[Outstanding]:
        """The thread that the trace saw take this stack over and exit."""
        low, high = older.pieces[0].start, older.pieces[-1].end
        for position in older.inside:
            outstanding = self._outstanding[position]
            run, owner = outstanding.run, outstanding.owner
            if run is not None and owner is not None and low <= run.stack <= high:
                return outstanding
        return None

    def _watched_exit(self, booked: BookedThread) -> Optional[Thread]:
        """The thread, alive at attach, that the trace saw exit: the earlier books still had its tid."""
        earlier = self._earlier.get(booked.descriptor) if self._earlier is not None else None
        return self._exits.get(earlier.tid) if earlier is not None and not earlier.exited else None

    def _case(
        self,
        outstanding: Outstanding,
        booked: Optional[BookedThread],
        exited_at: Optional[int],
        before_attach: bool,
    ) -> Case:
        mapping, run = outstanding.mapping, outstanding.run
        in_memory = self._residence.of(mapping)
        began_at = run.thread.born if mapping.made_at is None and run is not None else mapping.made_at
        cached = booked is None and self._cache.touches(mapping.pieces)
        occupant = self._occupants.first_in(mapping.pieces) or ""
        if outstanding.owned_by is not OwnedBy.RUNS_ON_IT and booked is None and not cached:
            facts = self._facts_of_mapped(outstanding, exited_at, before_attach, occupant)
            return Case(outstanding, in_memory, facts, began_at)
        origin = self._origin(outstanding, booked)
        place, stack = self._sites.place(outstanding)
        if booked is not None and place[0] == "shape":
            place = ("booked",)
        by_clone = raw_clone(outstanding, self._evidence.tgid)
        joined = (
            booked is None
            and origin is Origin.APPLICATION
            and self._evidence.books.state is BooksState.READ
            and not by_clone
        )
        facts = Facts(
            booked, exited_at, before_attach, True, cached, occupant, origin, place, stack, by_clone, joined
        )
        return Case(outstanding, in_memory, facts, began_at)

    def _facts_of_mapped(
        self, outstanding: Outstanding, exited_at: Optional[int], before_attach: bool, occupant: str
    ) -> Facts:
        """The facts of an orphan that is no stack; it comes from where it was mapped."""
        where = outstanding.mapping.site or self._sites.place(outstanding)[0]
        alike = (exited_at, before_attach, occupant, where)
        facts = self._mapped.get(alike)
        if facts is None:
            place, stack = self._sites.place(outstanding)
            facts = self._mapped[alike] = Facts(
                None, exited_at, before_attach, False, False, occupant, Origin.UNKNOWN, place, stack
            )
        return facts

    def _origin(self, outstanding: Outstanding, booked: Optional[BookedThread]) -> Origin:
        if booked is not None:
            return Origin.APPLICATION if booked.user_stack else Origin.LIBC
        mapped_from = self._sites.stack(outstanding.mapping.site)
        return stack_origin(outstanding, mapped_from, self._libc, self._evidence.tgid)


def _exit_seen(outstanding: Outstanding, booked: Optional[BookedThread]) -> Optional[int]:
    owner = outstanding.owner
    ran = booked is None or outstanding.owned_by is OwnedBy.RUNS_ON_IT
    return owner.exited_at if owner is not None and ran else None


def _is_orphan(outstanding: Outstanding, booked: Optional[BookedThread]) -> bool:
    if outstanding.owner is not None and not outstanding.owner.alive:
        return True
    return booked is not None and not booked.user_stack


def _given_in_parts(outstanding: Iterable[Outstanding]) -> Iterator[Interval]:
    """Stacks that clone3 was given whole, of which the mapping with the top is a part only.

    Such as those whose creator has laid a guard over the low end (mmap with MAP_FIXED).
    """
    for one in outstanding:
        run = one.run
        if run is not None and run.stack_size and run.stack < one.mapping.start < run.stack + run.stack_size:
            yield Interval(run.stack, one.mapping.end)


def _is_all_stack(mapping: Mapping, thread: BookedThread) -> bool:
    """Whether a mapping is this stack, not a heap or a pool that the application cut it from."""
    return not thread.user_stack or (thread.stack is not None and 2 * thread.stack.size >= mapping.size)


def _read_threads(books: Books) -> list[BookedThread]:
    if books.state is not BooksState.READ:
        return []
    return list({thread.descriptor: thread for thread in books.threads}.values())


def _live_name(thread: BookedThread) -> str:
    return (
        f"thread {thread.tid} by glibc's thread lists" if thread.tid else "a thread by glibc's thread lists"
    )


def _disjoint(stacks: Iterable[Interval]) -> list[Interval]:
    """The stacks, without those that overlap another: books that say so are wrong there."""
    ordered = sorted(set(stacks))
    ends = [0, *accumulate((stack.end for stack in ordered), max)]
    starts = [*(stack.start for stack in ordered[1:]), ordered[-1].end if ordered else 0]
    return [
        stack
        for stack, before, after in zip(ordered, ends, starts)
        if before <= stack.start and stack.end <= after
    ]


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    union: list[Interval] = []
    for interval in sorted(intervals):
        if union and interval.start < union[-1].end:
            union[-1] = Interval(union[-1].start, max(union[-1].end, interval.end))
        else:
            union.append(interval)
    return union
