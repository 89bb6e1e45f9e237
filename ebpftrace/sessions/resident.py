# SPDX-License-Identifier: Apache-2.0
"""Which code fills the memory of one process: its page faults, and smaps at both ends of the window."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Optional

from ebpftrace import frames
from ebpftrace.capture.faults import Fault
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Interval, MallocFree, Stack
from ebpftrace.procfs.hostmemory import huge_page_bytes
from ebpftrace.procfs.malloc import find_heaps
from ebpftrace.procfs.malloc_free import free_memory
from ebpftrace.procfs.maps import read_maps, read_smaps
from ebpftrace.procfs.memory import Memory
from ebpftrace.procfs.pagemap import PageState, PresentPages, page_states
from ebpftrace.size_changes.resident import (
    Extent,
    Place,
    ResidentSummary,
    RssCause,
    Touch,
    attribute,
    shares,
)
from ebpftrace.units import PAGE
from ebpftrace.vmas import HEAP, Vmas

if TYPE_CHECKING:
    from ebpftrace.sessions.growth_watch import GrowthWatch

_MAX_TOUCHES = 100_000
"""How many faults are stored with their pages; beyond, every second is dropped and the rest count twice."""
_SHARE = 0.05
"""Of a CPU, for readings between two polls: a short COMMAND may have ended at the next one."""
_MAX_PLACES = 10_000
"""How many places are counted separately; faults of further ones are counted together, without a stack."""
_MAX_PATH = 64
"""Frames that tell one place from another."""
_MAIN_STACK = "[stack]"


class _Kept(NamedTuple):
    """The last fault of a page."""

    at: int
    faults: int
    site: int
    tid: int
    name: str
    is_huge: bool = False


class PlaceKey(NamedTuple):
    """The functions from the program's own innermost frame outwards, in threads of one name."""

    thread: str
    path: tuple[str, ...]
    is_complete: bool
    """The path ends at the thread's first function."""


class ResidentWatch:
    """Page faults of one address space, and its smaps."""

    def __init__(self, watch: GrowthWatch, period: int, *, from_exec: bool) -> None:
        """Read smaps: what becomes resident from here on counts.  Raises CannotTrace.

        ``from_exec``: all that is resident counts, since the faults are those from the first instruction on.
        """
        self._watch = watch
        self._period = period
        self._huge_page = huge_page_bytes()
        self._kept: dict[int, _Kept] = {}
        """By page number, in the order of time."""
        self._scale = 1
        """How many sampled faults each remembered one represents."""
        self._skipped = 0
        """Sampled faults since the last one that was remembered."""
        self._replaced: list[_Kept] = []
        """Faults of pages that are gone or had another one since: their stacks may not have come yet."""
        self._gone: Counter[PlaceKey] = Counter()
        """Faults of pages that are not resident any more."""
        self._numbers: dict[PlaceKey, Counter[int]] = {}
        """Of each place, the stacks."""
        self._paths: dict[int, tuple[tuple[str, ...], bool]] = {}
        self._faults = 0
        self._read_at = 0.0
        """Not sooner, in seconds of CLOCK_MONOTONIC."""
        self._reported_until = self._before_at = self._after_at = time.monotonic_ns()
        self._after = self._read_smaps()
        self._before = [] if from_exec else self._after
        # A fault in a page that was there, as after a fork, makes nothing resident.  Of what was resident as
        # a whole that is known without a look.
        self._whole = [one for one in self._before if one.rss == one.end - one.start]
        self._whole_starts = [one.start for one in self._whole]
        parts = ((one.start, one.end) for one in self._before if 0 < one.rss < one.end - one.start)
        self._present = PresentPages(watch.pid, parts)

    def take(self, fault: Fault) -> None:
        """Take in one fault."""
        self._faults += 1
        self._skipped += 1
        if self._skipped < self._scale:
            return
        self._skipped = 0
        if self._was_there(fault.address):
            return
        number = fault.address // PAGE
        former = self._kept.pop(number, None)
        if former is not None:
            self._replaced.append(former)
            if len(self._replaced) > _MAX_TOUCHES:
                self._forget_replaced()
        self._kept[number] = _Kept(
            fault.at, fault.period * self._scale, fault.site, fault.thread.tid, fault.name
        )
        if len(self._kept) > _MAX_TOUCHES:
            self._scale *= 2
            self._kept = {
                page: kept._replace(faults=2 * kept.faults)
                for index, (page, kept) in enumerate(self._kept.items())
                if index % 2
            }

    def _was_there(self, address: int) -> bool:
        index = bisect_right(self._whole_starts, address) - 1
        return (index >= 0 and address < self._whole[index].end) or self._present.had(address)

    def read(self, *, at_any_cost: bool = False) -> None:
        """Find out what is resident now, unless that takes too large a share of the time.

        To be called when the faults that came by now have been taken in; their stacks may follow.
        """
        if self._watch.ended_by is not None or (time.monotonic() < self._read_at and not at_any_cost):
            return
        used = time.thread_time()
        # If it has exited or executed another program, the previous reading is used.
        with suppress(CannotTrace):
            self._after, self._after_at = self._read_smaps(), time.monotonic_ns()
            self._drop_absent()
        self._read_at = time.monotonic() + (time.thread_time() - used) / _SHARE

    def causes(self, gained: int) -> tuple[RssCause, ...]:
        """What filled ``gained`` bytes from the time that this was asked before to the last reading."""
        self._forget_replaced()
        since, self._reported_until = self._reported_until, self._after_at
        if gained < self._period * PAGE:
            return ()  # less than one fault represents: which one was sampled is chance
        recent = [touch for touch in self._touches()[0] if since < touch.at <= self._after_at]
        return tuple(
            RssCause(self._shown(place), part)
            for place, part in shares(gained, recent, PAGE, self._huge_page)
        )

    def summary(self, lost: int) -> ResidentSummary:
        """Split what the last reading of smaps had gained."""
        self._forget_replaced()
        touches, whole = self._touches()
        touches = [touch for touch in touches if touch.at <= self._after_at]
        touched: Counter[Hashable] = Counter()
        for place, faults in self._gone.items():
            touched[whole.get(place, place)] += faults
        for touch in touches:
            touched[touch.place] += touch.faults
        residence = attribute(
            self._before,
            self._after,
            touches,
            touched,
            (self._before_at, self._after_at),
            PAGE,
            self._huge_page,
            self._period,
        )
        shown = {place.place: self._shown(place.place) for place in residence.places}
        return ResidentSummary(residence, shown, self._period, self._faults, lost, self._malloc_free())

    def _malloc_free(self) -> Optional[MallocFree]:
        if self._watch.ended_by is None:
            with suppress(CannotTrace):
                return free_memory(self._watch.pid, read_maps(self._watch.pid))
        return None

    def _drop_absent(self) -> None:
        states = page_states(self._watch.pid, (number * PAGE for number in self._kept))
        for address, state in states.items():
            number = address // PAGE
            kept = self._kept[number]
            if state is PageState.ABSENT:
                self._replaced.append(kept)
                del self._kept[number]
            elif (state is PageState.HUGE) != kept.is_huge:
                self._kept[number] = kept._replace(is_huge=state is PageState.HUGE)

    def _forget_replaced(self) -> None:
        for kept in self._replaced:
            self._forget(kept)
        self._replaced.clear()

    def _forget(self, kept: _Kept) -> None:
        self._gone[self._place(kept)] += kept.faults

    def _touches(self) -> tuple[list[Touch], dict[PlaceKey, PlaceKey]]:
        """Return the faults with resident pages, and the places that are parts of others."""
        places = [self._place(kept) for kept in self._kept.values()]
        whole = _completed(set(self._numbers))
        touches = [
            Touch(number * PAGE, kept.at, kept.faults, whole.get(place, place), kept.is_huge)
            for (number, kept), place in zip(self._kept.items(), places)
        ]
        return touches, whole

    def _place(self, kept: _Kept) -> PlaceKey:
        number = self._watch.fault_stack(kept.site, kept.tid, kept.at)
        path = self._paths.get(number)
        if path is None:
            path = self._paths[number] = _path(self._watch.stack(number))
        key = PlaceKey(kept.name, *path)
        if key not in self._numbers and len(self._numbers) >= _MAX_PLACES:
            key, number = PlaceKey("", (), False), 0
        self._numbers.setdefault(key, Counter())[number] += 1
        return key

    def _shown(self, place: Hashable) -> Place:
        assert isinstance(place, PlaceKey)
        ((number, _),) = self._numbers[place].most_common(1)
        return Place(place.thread, self._watch.stack(number))

    def _read_smaps(self) -> list[Extent]:
        vmas = read_smaps(self._watch.pid)
        arenas: list[Interval] = []
        with suppress(CannotTrace), Memory(self._watch.pid) as memory:
            arenas = [Interval(heap.start, heap.end) for heap in find_heaps(vmas, memory)]
        return list(_extents(vmas, arenas))


def _path(stack: Stack) -> tuple[tuple[str, ...], bool]:
    first = frames.culprit(stack)
    if first is None:
        return (), False
    return tuple(map(frames.called, stack.frames[stack.frames.index(first) :][:_MAX_PATH])), stack.complete


def _completed(keys: Iterable[PlaceKey]) -> dict[PlaceKey, PlaceKey]:
    """Of paths that were recorded in part only, the whole ones that they must be the beginning of.

    Where several whole ones begin so, or none does, the part stays a place of its own.
    """
    wholes: dict[tuple[str, int], dict[tuple[str, ...], set[PlaceKey]]] = {}
    parts = [key for key in keys if not key.is_complete and key.path]
    lengths = {len(key.path) for key in parts}
    for whole in (key for key in keys if key.is_complete):
        for length in lengths:
            if length <= len(whole.path):
                beginnings = wholes.setdefault((whole.thread, length), {})
                beginnings.setdefault(whole.path[:length], set()).add(whole)
    found = {}
    for part in parts:
        candidates = wholes.get((part.thread, len(part.path)), {}).get(part.path, set())
        if len(candidates) == 1:
            (found[part],) = candidates
    return found


def _extents(vmas: Vmas, arenas: list[Interval]) -> Iterable[Extent]:
    """The mappings with what they are; ``arenas`` ascending."""
    index = 0
    guard_end = 0
    for vma in vmas:
        while index < len(arenas) and arenas[index].end <= vma.start:
            index += 1
        is_file = bool(vma.inode) and not vma.is_anonymous
        if is_file or vma.path:
            kind = {HEAP: "heap", _MAIN_STACK: "main thread's stack"}.get(vma.path, vma.path)
        elif not vma.perms.endswith("p"):
            kind = "shared memory"
        elif index < len(arenas) and arenas[index].start < vma.end:
            kind = "malloc arena"
        elif "x" in vma.perms:
            kind = "code made at run time"
        elif guard_end == vma.start and "w" in vma.perms:
            kind = "stack-shaped"
        else:
            kind = "anonymous"
        if vma.guard:
            guard_end = vma.end
        yield Extent(vma.start, vma.end, vma.rss or 0, vma.swap or 0, kind, is_file)
