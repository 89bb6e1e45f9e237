# SPDX-License-Identifier: Apache-2.0
"""A model of an address space, and of what the kernel side records about it.

``Target`` has both: ``pages`` is the truth, page by page; ``rows``, ``newest`` and ``sent`` are what the BPF
programs would leave behind, by an exact match of the start address and nothing else.  Addresses are page
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ebpftrace.ledger.events import Event, Evicted, Remapped, Unmapped
from ebpftrace.model import Interval, Row, ThreadId, Vma

SIZE = 32
"""Pages of the model's address space."""
SMALL, LARGE = 1, 4
"""Pages of the places for which the kernel side remembers together when they were touched."""
MOST = 2
"""What touches more small places is noted by large ones, what touches more of these as touching all."""


class Page(NamedTuple):
    """What a page holds: who mapped it and when; None for the baseline."""

    mapper: Optional[ThreadId]
    made_at: Optional[int]


@dataclass
class Unmap:
    """A munmap between its enter and its exit: it has taken effect, but its event is not out."""

    area: Interval
    entered: int
    hole: bool
    alone: bool
    """It has taken a row out that is as long, and no others lay there."""


@dataclass
class Remap:
    """A mremap between its enter and its exit."""

    old: Interval
    new: Interval
    entered: int
    twin_of: Optional[ThreadId]
    """The call makes a mapping of its caller's beside the old one."""
    fixed: bool
    row: Optional[Row]
    """The row that goes along in the kernel; None where Python must finish it."""


@dataclass
class Times:
    """When a call of some kind touched a place last (bpf/rows.h)."""

    latest: int = 0
    everywhere: int = 0
    places: dict[tuple[str, int], int] = field(default_factory=dict)

    def mark(self, area: Interval, at: int) -> None:
        self.latest = max(self.latest, at)
        small, large = _places(area, SMALL), _places(area, LARGE)
        if len(large) > MOST:
            self.everywhere = max(self.everywhere, at)
            return
        kind, numbers = ("small", small) if len(small) <= MOST else ("by large calls", large)
        for place in [*(("large", number) for number in large), *((kind, number) for number in numbers)]:
            self.places[place] = max(self.places.get(place, 0), at)

    def of(self, area: Interval) -> int:
        small, large = _places(area, SMALL), _places(area, LARGE)
        if len(large) > MOST:
            return self.latest
        found_in = [("large", number) for number in large]
        if len(small) <= MOST:
            found_in = [("by large calls", number) for number in large]
            found_in += [("small", number) for number in small]
        return max(self.everywhere, *(self.places.get(place, 0) for place in found_in))


def _places(area: Interval, size: int) -> range:
    return range(area.start // size, area.end // size + 1)


@dataclass
class Target:
    """An address space with a baseline, and the kernel's ledger of it."""

    baseline: list[Interval]
    now: int = 100
    pages: dict[int, Page] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    newest: dict[ThreadId, Row] = field(default_factory=dict)
    """What a thread mapped last and keeps to itself."""
    sharing: set[ThreadId] = field(default_factory=set)
    """Who keeps nothing to itself any more."""
    sent: list[Event] = field(default_factory=list)
    under_way: list[Unmap | Remap] = field(default_factory=list)
    hard: Times = field(default_factory=Times)
    moved: Times = field(default_factory=Times)
    alone_at: int = 0
    """When a row was last unmapped alone that may have been left behind by an earlier call."""

    def __post_init__(self) -> None:
        for area in self.baseline:
            self._set(area, Page(None, None))
        self.attached_at = self.now

    def vmas(self) -> list[Vma]:
        """Return what /proc/PID/maps shows, each page by itself."""
        return [Vma(page, page + 1, "rw-p", 0, "00:00", 0, "") for page in sorted(self.pages)]

    def baseline_vmas(self) -> list[Vma]:
        return [Vma(*area, "rw-p", 0, "00:00", 0, "") for area in self.baseline]

    # --- calls ---------------------------------------------------------------

    def mmap(self, mapper: ThreadId, hint: int, size: int, fixed: bool) -> None:
        """MAP_FIXED at the hint, or somewhere free (from the hint on, then from the bottom)."""
        area = Interval(hint, hint + size) if fixed else self._free(hint, size)
        if area is None or area.end > SIZE or self._busy(area):
            return
        at = self._tick()
        if fixed:
            self._hole(area, at)
        self._keep_row(Row(area.start, area.size, at, at, mapper, 3, 0x22, 0))
        self._set(area, Page(mapper, at))

    def mmap_noreplace(self, mapper: ThreadId, start: int, size: int) -> None:
        area = Interval(start, start + size)
        if area.end <= SIZE and not self._busy(area) and not self._mapped(area):
            at = self._tick()
            self._keep_row(Row(start, size, at, at, mapper, 3, 0x22, 0))
            self._set(area, Page(mapper, at))

    def munmap(self, caller: ThreadId, start: int, size: int, fails: bool = False) -> None:
        """Enter, and take effect; ``finish`` is the exit.  A failing one is over at once."""
        area = Interval(start, min(start + size, SIZE))
        if self._busy(area) or not area.size:
            return
        at = self._tick()
        row = self._find_row(caller, start)
        if fails:
            return  # removed and restored: the same rows as before
        hole, whole = True, False
        if row is not None and row.length <= area.size:
            whole = row.length == area.size
            self._drop_row(row)
            hole = row.length < area.size or not self._clean(row)
            if row.since <= self.moved.of(_area(row)):
                self.sent.append(Evicted(row))
        alone = whole and not self._has_rows_inside(area)
        if hole:
            self._mark_hole(area, at, alone)
        self._clear(area)
        self.under_way.append(Unmap(area, at, hole, alone))

    def mremap(
        self,
        caller: ThreadId,
        start: int,
        old_size: int,
        new_size: int,
        to: Optional[int],
        keeps_old: bool,
    ) -> None:
        """Enter, and take effect: MREMAP_FIXED at ``to``; else in place where it fits, else moved."""
        old = Interval(start, start + old_size)
        new = self._destination(old, new_size, to, keeps_old)
        source = Interval(start, start + max(old_size, 1))
        if new is None or self._busy(source) or self._busy(new):
            return
        at = self._tick()
        row = self._find_row(caller, start)
        keeps_old = keeps_old or not old.size
        exact = row is not None and row.length == old.size and self._is_one_piece(row)
        exact = exact and not keeps_old and to is None
        if exact and row is not None:
            self._drop_row(row)
        elif not keeps_old:
            self._mark_moved(old, new, at)
        if keeps_old:
            self._set(new, Page(caller, at))
        else:
            self._remap_pages(old, new)
        twin_of = caller if keeps_old else None
        self.under_way.append(Remap(old, new, at, twin_of, to is not None, row if exact else None))

    def finish(self, index: int) -> None:
        """Let one of the calls under way return."""
        if not self.under_way:
            return
        call = self.under_way.pop(index % len(self.under_way))
        at = self._tick()
        if isinstance(call, Unmap):
            if call.hole:
                self._mark_hole(call.area, at, call.alone)
                self.sent.append(Unmapped(call.area, call.entered))
        elif call.twin_of is not None:
            if call.fixed:
                self._hole(call.new, at)
            self._enter_row(Row(call.new.start, call.new.size, at, at, call.twin_of, 3, 0x22, 0))
            self._set(call.new, Page(call.twin_of, at))
        elif call.row is None:
            self.sent.append(Remapped(call.old, call.new, call.entered, at))
            self._mark_moved(call.old, call.new, at)
        else:
            if call.fixed:
                self._hole(call.new, at)
            self._enter_row(call.row._replace(start=call.new.start, length=call.new.size, since=at))

    def exit(self, thread: ThreadId) -> None:
        """A thread leaves what it kept; the model's may come back."""
        if thread in self.newest:
            self._enter_row(self.newest.pop(thread))

    def finish_all(self) -> None:
        while self.under_way:
            self.finish(0)

    # --- the kernel's ledger -------------------------------------------------

    def _tick(self) -> int:
        self.now += 1
        return self.now

    def ledger(self) -> list[Row]:
        """All rows, ascending."""
        return sorted([*self.rows.values(), *self.newest.values()])

    def _find_row(self, caller: ThreadId, start: int) -> Optional[Row]:
        """What another thread keeps is not found; that one shares from now on."""
        kept = self.newest.get(caller)
        if kept is not None and kept.start == start:
            return kept
        if start not in self.rows:
            self.sharing.update(thread for thread, row in self.newest.items() if row.start == start)
        return self.rows.get(start)

    def _drop_row(self, row: Row) -> None:
        if self.newest.get(row.mapper) == row:
            del self.newest[row.mapper]
        else:
            del self.rows[row.start]

    def _keep_row(self, row: Row) -> None:
        if row.mapper in self.sharing:
            if row.mapper in self.newest:
                self.sent.append(Evicted(self.newest.pop(row.mapper)))
            self._enter_row(row)
        else:
            self.exit(row.mapper)
            self.newest[row.mapper] = row

    def _enter_row(self, row: Row) -> None:
        other = self.rows.get(row.start, row)
        older, newer = sorted((other, row), key=lambda each: each.since)
        if older is not newer:
            if older.length > newer.length or older.since <= self.moved.latest:
                self.sent.append(Evicted(older))
            self.hard.mark(_area(older), newer.since - 1)
        self.rows[row.start] = newer

    def _hole(self, area: Interval, at: int) -> None:
        self.sent.append(Unmapped(area, at))
        self.hard.mark(area, self.now)

    def _has_rows_inside(self, area: Interval) -> bool:
        """Rows may lie in parts that a row had lost before it was unmapped, or be kept in its place."""
        inside = range(*area)
        return any(row.start in inside for row in (*self.rows.values(), *self.newest.values()))

    def _clean(self, row: Row) -> bool:
        return row.since > self.attached_at and row.since >= self.hard.of(_area(row))

    def _is_one_piece(self, row: Row) -> bool:
        return self._clean(row) and row.since > self.alone_at

    def _mark_hole(self, area: Interval, at: int, alone: bool) -> None:
        if alone:
            self.alone_at = at
        else:
            self.hard.mark(area, at)

    def _mark_moved(self, old: Interval, new: Interval, at: int) -> None:
        source = Interval(old.start, old.start + max(old.size, 1))
        for area in (source, new):
            self.hard.mark(area, at)
            self.moved.mark(area, at)

    # --- the truth -----------------------------------------------------------

    def _set(self, area: Interval, page: Page) -> None:
        self.pages.update(dict.fromkeys(range(*area), page))

    def _clear(self, area: Interval) -> None:
        for page in range(*area):
            self.pages.pop(page, None)

    def _mapped(self, area: Interval) -> bool:
        return any(page in self.pages for page in range(*area))

    def _busy(self, area: Interval) -> bool:
        """Say whether a mremap that has not returned is about to hand out a part of the area."""
        return any(
            isinstance(call, Remap) and area.start < call.new.end and call.new.start < area.end
            for call in self.under_way
        )

    def _free(self, hint: int, size: int) -> Optional[Interval]:
        for start in (*range(hint, SIZE - size + 1), *range(SIZE - size + 1)):
            if not self._mapped(Interval(start, start + size)):
                return Interval(start, start + size)
        return None

    def _destination(
        self, old: Interval, new_size: int, to: Optional[int], keeps_old: bool
    ) -> Optional[Interval]:
        """Return where mm/mremap.c puts it, None where the call fails or changes nothing."""
        moves = Interval(old.start, old.start + min(old.size, new_size))
        gapless = all(page in self.pages for page in range(*moves))
        if old.end > SIZE or not new_size or old.start not in self.pages:
            return None
        if keeps_old and old.size not in (0, new_size):
            return None
        if to is not None:
            new = Interval(to, to + new_size)
            overlaps = (new.start < old.end and old.start < new.end) or new.start == old.start
            movable = gapless or new_size == old.size
            return new if movable and not overlaps and new.end <= SIZE else None
        if new_size < old.size:
            return Interval(old.start, old.start + new_size)
        if not gapless or (new_size == old.size and not keeps_old):
            return None
        in_place = Interval(old.start, old.start + new_size)
        if not keeps_old and in_place.end <= SIZE and not self._mapped(Interval(old.end, in_place.end)):
            return in_place
        return self._free(0, new_size)

    def _remap_pages(self, old: Interval, new: Interval) -> None:
        last = self.pages[max(page for page in range(*old) if page in self.pages)]
        moved = {page: self.pages[page] for page in range(*old) if page in self.pages}
        self._clear(old)
        for page, held in moved.items():
            if page - old.start < new.size:
                self.pages[page - old.start + new.start] = held
        self._set(Interval(new.start + old.size, new.end), last)


def _area(row: Row) -> Interval:
    return Interval(row.start, row.start + row.length)
