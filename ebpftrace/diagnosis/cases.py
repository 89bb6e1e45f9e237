# SPDX-License-Identifier: Apache-2.0
"""What the rules judge: each orphan with what the trace, glibc's thread lists and /proc say about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    Interval,
    ListedThread,
    Mapping,
    Orphan,
    Outstanding,
    OwnedBy,
    Reach,
    ReadState,
    Stack,
    Suspect,
    Thread,
    ThreadLists,
)
from ebpftrace.text import plural

_LISTED_SITE: SiteKey = ("listed",)
"""The site of threads that the trace knows nothing of."""
_DESCRIPTOR = 4096
"""Bytes at the top of a stack that contain the C library's thread descriptor: 2,304 in glibc on x86-64."""


def may_be_lost(mapping: Mapping) -> bool:
    """Whether a mapping of the window is lost if no pointer to it is left.

    These are in use without a pointer: pieces of a reservation (MAP_FIXED: segments of libraries, heaps of
    runtimes), memory that nothing can touch (reservations, guards), stacks, and private mappings of files.
    """
    flags, prot = mapping.flags, mapping.prot
    if flags is None or mapping.made_at is None or prot == PROT_NONE:
        return False
    if flags & (MAP_FIXED | MAP_STACK | MAP_GROWSDOWN):
        return False
    return bool(flags & (MAP_ANONYMOUS | MAP_SHARED))


class Listed(NamedTuple):
    """What glibc's lists of stacks in use say about an exited thread, and about many others as well."""

    start_routine: int
    user_stack: bool
    """As in ``ListedThread``; so is ``detached``."""
    detached: bool


class Facts(NamedTuple):
    """What is known about an orphan besides the mapping itself; equal orphans share one object."""

    listed: Optional[Listed]
    """The exited thread that glibc's lists name for it; None unless the lists were READ."""
    exited_at: Optional[int]
    before_attach: bool
    """The owner exited before attach, so the time is unknown."""
    is_stack: bool
    """A thread ran on it."""
    cached: bool
    """It is on glibc's list of cached stacks."""
    occupant: str
    """A live thread that runs on it nevertheless, such as ``thread 4711``; empty if there is none."""
    origin: Origin
    """What mapped it; UNKNOWN if it is not a stack."""
    site: SiteKey
    stack: Stack
    by_clone: bool = False
    """Its thread was created by a bare clone call, without a thread library."""
    joined: bool = False
    """The application mapped it for a pthread which, by glibc's lists, was joined or detached."""

    @property
    def exit_unseen(self) -> bool:
        """The owner exited in the window, but the trace can't say when."""
        return self.exited_at is None and not self.before_attach


class Case(NamedTuple):
    """One orphan with all that is known about it."""

    outstanding: Outstanding
    resident: Resident
    facts: Facts
    began_at: Optional[int]
    """When it was mapped; for a stack from before attach, when its last owner was created on it."""
    descriptor: Optional[int] = None
    """Address of the descriptor, which is the handle, of the thread in ``facts.listed``."""
    reach: Optional[Reach] = None
    """What the search found; None if it was not searched for."""

    @property
    def suspect(self) -> Optional[Suspect]:
        """The memory and handle to search for; None if the result could not matter.

        glibc's lists alone decide about a cached stack and that of a detached thread, and memory that a live
        thread runs on is in use.
        """
        facts, pieces = self.facts, self.outstanding.mapping.pieces
        if facts.cached or facts.occupant or (facts.listed is not None and facts.listed.detached):
            return None
        if self.descriptor is not None:
            return Suspect(pieces, self.descriptor)
        if not facts.is_stack:
            return Suspect(pieces)
        if facts.by_clone:
            # clone takes the address just above the stack, which may be the only one the creator stores.
            return Suspect(pieces, reservation=Interval(self.mapping.start, self.mapping.end + 1))
        low = max(pieces[-1].start, pieces[-1].end - _DESCRIPTOR)
        return Suspect(pieces, silent=Interval(low, pieces[-1].end), joined=facts.joined)

    @property
    def mapping(self) -> Mapping:
        """The mapping, without what has been unmapped of it."""
        return self.outstanding.mapping

    @property
    def orphan(self) -> Orphan:
        """The orphan as the report shows it."""
        return Orphan(self.outstanding, *self.resident)


class _OlderStack(NamedTuple):
    """A stack that was mapped before attach, whose booked thread has exited."""

    listed_thread: ListedThread
    pieces: tuple[Interval, ...]
    inside: tuple[int, ...]
    """Indices of the outstanding mappings of the baseline that it covers."""


class Cases(NamedTuple):
    """What the rules judge."""

    orphans: list[Case]
    """Each orphan once, whether the trace, glibc's lists or its shape showed it."""
    kept: list[Case]
    """Mappings of the window whose owner lives and for which ``may_be_lost`` holds."""
    live_stacks: list[Case]
    """Stacks of live threads that were created in the window."""
    notes: list[str]
    """A line about exited threads whose stacks could not be identified, if there are any."""


def collect_cases(evidence: Evidence) -> Cases:
    """Bring together what the trace, glibc's lists and /proc say about each mapping that is to be judged."""
    return _Builder(evidence).cases()


class _Builder:
    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._thread_lists = _read_threads(evidence.thread_lists)
        self._libc = libc_of(evidence.thread_lists)
        self._sites = Sites(evidence.stack_of)
        cache = evidence.thread_lists.stack_cache if evidence.thread_lists.state is ReadState.READ else ()
        used = [thread.stack for thread in self._thread_lists if thread.stack and not thread.user_stack]
        given = _given_in_parts(evidence.outstanding)
        self._outstanding = whole_stacks(evidence.outstanding, _disjoint([*cache, *used, *given]))
        self._cache = RangeIndex((interval, None) for interval in _union(cache))
        self._occupants = PointIndex(
            [(pointer, f"thread {tid}") for tid, pointer in evidence.live_stack_pointers.items()]
            + [(thread.descriptor, _live_name(thread)) for thread in self._thread_lists if not thread.exited]
        )
        self._earlier = (
            {thread.descriptor: thread for thread in _read_threads(evidence.earlier_lists)}
            if evidence.earlier_lists is not None and evidence.earlier_lists.state is ReadState.READ
            else None
        )
        self._exits = {
            thread.id.tid: thread for thread in evidence.threads if not thread.alive and thread.before_attach
        }
        self._mapped: dict[tuple[Optional[int], bool, str, Union[int, SiteKey]], Facts] = {}
        """Shared facts of orphans that are not stacks."""
        self._unowned: dict[tuple[Listed, bool, str], Facts] = {}
        """Shared facts of exited threads of which the trace saw nothing."""
        self._residence = Residence(evidence.vmas)
        self._unplaced = 0

    @cached_property
    def _pieces(self) -> RangeIndex[int]:
        """Indices of the outstanding mappings; built only if the thread lists have exited threads."""
        return RangeIndex(
            (piece, position)
            for position, outstanding in enumerate(self._outstanding)
            for piece in outstanding.mapping.pieces
        )

    def cases(self) -> Cases:
        listed_in, elsewhere = self._place_listed()
        older = self._older_stacks(elsewhere)
        orphans = list(map(self._older_case, older))
        covered = {position for stack in older for position in stack.inside}
        kept, live_stacks = [], []
        for position, outstanding in enumerate(self._outstanding):
            listed_thread = listed_in.get(position)
            if position in covered:
                continue
            if _is_orphan(outstanding, listed_thread):
                if listed_thread is not None:
                    outstanding = _run_on_by_unseen(outstanding)
                orphans.append(
                    self._case(outstanding, listed_thread, _exit_seen(outstanding, listed_thread), False)
                )
            elif outstanding.owned_by is OwnedBy.RUNS_ON_IT:
                if (
                    outstanding.run is not None
                    and outstanding.run.thread.started_at >= self._evidence.attached_at
                ):
                    live_stacks.append(self._case(outstanding, None, None, False))
            elif may_be_lost(outstanding.mapping):
                kept.append(self._case(outstanding, None, None, False))
        orphans += self._stack_shaped(covered)
        return Cases(orphans, kept, live_stacks, self._notes())

    def _stack_shaped(self, covered: set[int]) -> Iterator[Case]:
        """Areas from before attach that are shaped like stacks and whose owner nothing else shows."""
        for area in self._evidence.stack_shaped:
            inside, newer = self._split_by_age(area)
            owned = any(self._outstanding[position].owner is not None for position in inside)
            if newer or owned or not covered.isdisjoint(inside):
                continue
            mapping = Mapping((area,), None, None, None, None, 0)
            occupant = self._occupants.first_in((area,)) or ""
            site: SiteKey = ("stack-shaped", area.size)
            facts = Facts(
                listed=None,
                exited_at=None,
                before_attach=True,
                is_stack=True,
                cached=False,
                occupant=occupant,
                origin=Origin.UNKNOWN,
                site=site,
                stack=NO_STACK,
            )
            outstanding = Outstanding(mapping, None, OwnedBy.RUNS_ON_IT, None)
            yield Case(outstanding, self._residence.of(mapping), facts, None)

    def _notes(self) -> list[str]:
        if not self._unplaced:
            return []
        threads = plural(self._unplaced, "more thread has exited and is", "more threads have exited and are")
        return [f"{threads} not joined so far, on stacks whose extent is unknown: not counted"]

    def _place_listed(self) -> tuple[dict[int, ListedThread], list[ListedThread]]:
        """Split exited threads into those whose stack is a mapping of the window (by index) and others."""
        inside: dict[int, ListedThread] = {}
        elsewhere = []
        for thread in self._thread_lists:
            if not thread.exited:
                continue
            position = self._pieces.at(thread.descriptor)
            if position is None and self._evidence.lists_read_at is not None:
                continue  # its stack was unmapped after the thread lists were read
            if position is None or self._outstanding[position].mapping.before_attach:
                elsewhere.append(thread)
            elif _is_all_stack(self._outstanding[position].mapping, thread):
                inside[position] = thread
            else:
                self._unplaced += 1
        return inside, elsewhere

    def _older_stacks(self, threads: Sequence[ListedThread]) -> list[_OlderStack]:
        older = []
        for thread in threads:
            stack = thread.stack
            if stack is None or not thread.extent_known:
                self._unplaced += 1
                continue
            inside, made_in_window = self._split_by_age(stack)
            pieces = subtract(stack, made_in_window)
            if pieces:
                older.append(_OlderStack(thread, pieces, inside))
        return older

    def _split_by_age(self, stack: Interval) -> tuple[tuple[int, ...], list[Interval]]:
        older, newer = [], []
        for piece, position in self._pieces.overlapping(stack):
            if self._outstanding[position].mapping.before_attach:
                older.append(position)
            else:
                newer.append(piece)
        return tuple(older), newer

    def _older_case(self, older: _OlderStack) -> Case:
        mapping = Mapping(older.pieces, None, None, None, None, 0)
        seen = self._last_run(older)
        if seen is not None:
            owner, run = seen.owner, seen.run
        else:
            owner, run = self._watched_exit(older.listed_thread), None
        if self._earlier is None:
            before_attach = owner is None
        else:
            earlier = self._earlier.get(older.listed_thread.descriptor)
            before_attach = owner is None and earlier is not None and earlier.exited
        outstanding = Outstanding(mapping, owner, OwnedBy.RUNS_ON_IT, None, run)
        if owner is None:
            return self._unowned_case(outstanding, older.listed_thread, before_attach)
        return self._case(outstanding, older.listed_thread, owner.exited_at, before_attach)

    def _unowned_case(
        self, outstanding: Outstanding, listed_thread: ListedThread, before_attach: bool
    ) -> Case:
        """As ``_case``, for a thread of which the trace saw nothing.  There may be a hundred thousand."""
        mapping = outstanding.mapping
        listed = _listed(listed_thread)
        occupant = self._occupants.first_in(mapping.pieces) or ""
        similar = listed, before_attach, occupant
        facts = self._unowned.get(similar)
        if facts is None:
            facts = self._unowned[similar] = Facts(
                listed=listed,
                exited_at=None,
                before_attach=before_attach,
                is_stack=True,
                cached=False,
                occupant=occupant,
                origin=_origin_of(listed),
                site=_LISTED_SITE,
                stack=NO_STACK,
            )
        return Case(outstanding, self._residence.of(mapping), facts, None, listed_thread.descriptor)

    def _last_run(self, older: _OlderStack) -> Optional[Outstanding]:
        """The clone call, seen by the trace, that put an exited thread on this stack."""
        low, high = older.pieces[0].start, older.pieces[-1].end
        for position in older.inside:
            outstanding = self._outstanding[position]
            run, owner = outstanding.run, outstanding.owner
            if run is not None and owner is not None and low <= run.stack <= high:
                return outstanding
        return None

    def _watched_exit(self, listed_thread: ListedThread) -> Optional[Thread]:
        """The thread that lived at attach by the earlier thread lists, and whose exit the trace saw."""
        earlier = self._earlier.get(listed_thread.descriptor) if self._earlier is not None else None
        return self._exits.get(earlier.tid) if earlier is not None and not earlier.exited else None

    def _case(
        self,
        outstanding: Outstanding,
        listed_thread: Optional[ListedThread],
        exited_at: Optional[int],
        before_attach: bool,
    ) -> Case:
        mapping, run = outstanding.mapping, outstanding.run
        in_memory = self._residence.of(mapping)
        began_at = run.thread.started_at if mapping.made_at is None and run is not None else mapping.made_at
        cached = listed_thread is None and self._cache.touches(mapping.pieces)
        occupant = self._occupants.first_in(mapping.pieces) or ""
        if outstanding.owned_by is not OwnedBy.RUNS_ON_IT and listed_thread is None and not cached:
            facts = self._facts_of_mapped(outstanding, exited_at, before_attach, occupant)
            return Case(outstanding, in_memory, facts, began_at)
        origin = self._origin(outstanding, listed_thread)
        site, stack = self._sites.of(outstanding)
        if listed_thread is not None and site[0] == "shape":
            site = _LISTED_SITE
        by_clone = raw_clone(outstanding, self._evidence.tgid)
        joined = (
            listed_thread is None
            and origin is Origin.APPLICATION
            and self._evidence.thread_lists.state is ReadState.READ
            and not by_clone
        )
        facts = Facts(
            listed=_listed(listed_thread) if listed_thread is not None else None,
            exited_at=exited_at,
            before_attach=before_attach,
            is_stack=True,
            cached=cached,
            occupant=occupant,
            origin=origin,
            site=site,
            stack=stack,
            by_clone=by_clone,
            joined=joined,
        )
        descriptor = listed_thread.descriptor if listed_thread is not None else None
        return Case(outstanding, in_memory, facts, began_at, descriptor)

    def _facts_of_mapped(
        self, outstanding: Outstanding, exited_at: Optional[int], before_attach: bool, occupant: str
    ) -> Facts:
        """The facts of an orphan that is not a stack; its site is that of the mmap call."""
        where = outstanding.mapping.site or self._sites.of(outstanding)[0]
        similar = (exited_at, before_attach, occupant, where)
        facts = self._mapped.get(similar)
        if facts is None:
            site, stack = self._sites.of(outstanding)
            facts = self._mapped[similar] = Facts(
                listed=None,
                exited_at=exited_at,
                before_attach=before_attach,
                is_stack=False,
                cached=False,
                occupant=occupant,
                origin=Origin.UNKNOWN,
                site=site,
                stack=stack,
            )
        return facts

    def _origin(self, outstanding: Outstanding, listed_thread: Optional[ListedThread]) -> Origin:
        if listed_thread is not None:
            return _origin_of(_listed(listed_thread))
        mapped_from = self._sites.stack(outstanding.mapping.site)
        return stack_origin(outstanding, mapped_from, self._libc, self._evidence.tgid)


def _listed(thread: ListedThread) -> Listed:
    return Listed(thread.start_routine, thread.user_stack, thread.detached)


def _origin_of(listed: Listed) -> Origin:
    return Origin.APPLICATION if listed.user_stack else Origin.LIBC


def _exit_seen(outstanding: Outstanding, listed_thread: Optional[ListedThread]) -> Optional[int]:
    owner = outstanding.owner
    ran = listed_thread is None or outstanding.owned_by is OwnedBy.RUNS_ON_IT
    return owner.exited_at if owner is not None and ran else None


def _run_on_by_unseen(outstanding: Outstanding) -> Outstanding:
    """The stack of an exited thread, without its mapper as owner if the thread's start was not seen.

    The kernel may skip a run of our programs (``losses``), and an exited thread's descriptor has no tid.
    """
    if outstanding.owned_by is not OwnedBy.MAPPED_IT:
        return outstanding
    return outstanding._replace(owner=None, owned_by=OwnedBy.RUNS_ON_IT)


def _is_orphan(outstanding: Outstanding, listed_thread: Optional[ListedThread]) -> bool:
    if outstanding.owner is not None and not outstanding.owner.alive:
        return True
    return listed_thread is not None and not listed_thread.user_stack


def _given_in_parts(outstanding: Iterable[Outstanding]) -> Iterator[Interval]:
    """Stacks passed to clone3 of which the mapping at the top is only a part.

    Their creator has, for example, mapped a guard over the low end (mmap with MAP_FIXED).
    """
    for one in outstanding:
        run = one.run
        if run is not None and run.stack_size and run.stack < one.mapping.start < run.stack + run.stack_size:
            yield Interval(run.stack, one.mapping.end)


def _is_all_stack(mapping: Mapping, thread: ListedThread) -> bool:
    """Whether the mapping is just this stack, not a heap or a pool that the application cut it from."""
    return not thread.user_stack or (thread.stack is not None and 2 * thread.stack.size >= mapping.size)


def _read_threads(thread_lists: ThreadLists) -> list[ListedThread]:
    if thread_lists.state is not ReadState.READ:
        return []
    return list({thread.descriptor: thread for thread in thread_lists.threads}.values())


def _live_name(thread: ListedThread) -> str:
    return (
        f"thread {thread.tid} by glibc's thread lists" if thread.tid else "a thread by glibc's thread lists"
    )


def _disjoint(stacks: Iterable[Interval]) -> list[Interval]:
    """The stacks, without those that overlap another: where they overlap, the thread lists are wrong."""
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
