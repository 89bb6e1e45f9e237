# SPDX-License-Identifier: Apache-2.0
"""The address space as rows, holes and moves change it, one step at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, Optional

from ebpftrace.ledger.events import Move
from ebpftrace.ledger.intervals import IntervalMap, extend
from ebpftrace.model import Interval, Mapping, Row, ThreadId, Vma
from ebpftrace.vmas import HEAP

RowKey = tuple[int, int]
"""What names a row of the kernel's ledger for good: (start, since)."""

BEFORE_ALL = -1
"""``since`` of the baseline: older than any event, so that each of them acts on it."""

SPECIAL_NAMES = (HEAP, "[stack", "[vdso]", "[vvar", "[vsyscall]", "[vectors]", "[sigpage]", "[uprobes]")
"""How names start that the kernel gives to areas no mmap call made (fs/proc/task_mmu.c, arch vdso code)."""


def is_special(vma: Vma) -> bool:
    """Say whether this area came without an mmap call, and so is no mapping of the ledger.

    ``[heap]`` is brk's and is accounted as brk growth; ``[stack]`` grows by page faults, without a call;
    the others are the kernel's own.  None of them can be an orphan, and none has a mapper.
    Named anonymous memory (``[anon:...]``, PR_SET_VMA_ANON_NAME) is a mapping like any other.
    """
    return vma.path.startswith(SPECIAL_NAMES)


@dataclass(eq=False)
class Origin:
    """The call that put a mapping where it is; compared by identity: one origin, one mapping."""

    since: Optional[int] = None
    made_at: Optional[int] = None
    mapper: Optional[ThreadId] = None
    prot: Optional[int] = None
    flags: Optional[int] = None
    site: int = 0
    made: Optional[Interval] = None


class Piece(NamedTuple):
    """What a range of addresses holds."""

    origin: Origin
    since: int
    """When this very range came to hold it."""
    row: Optional[RowKey]
    """The kernel's row that stands for it: without the row it is gone.  None: Python's to keep."""


Found = list[tuple[int, int, Piece]]


def whole_mapping(row: Row) -> Mapping:
    """Return the mapping of a row of which nothing has been unmapped."""
    start, length, since, made_at, mapper, prot, flags, site = row
    made = Interval(start, start + length)
    return Mapping((made,), made_at, mapper, prot, flags, site, since, made)


def row_key(row: Row) -> RowKey:
    """Return what names the row for good."""
    return row.start, row.since


def _piece_of(row: Row, kernel_keeps_it: bool) -> Piece:
    made = Interval(row.start, row.start + row.length)
    origin = Origin(row.since, row.made_at, row.mapper, row.prot, row.flags, row.site, made)
    return Piece(origin, row.since, row_key(row) if kernel_keeps_it else None)


class Space:
    """Which piece lies where; the steps may come in any order that respects their times.

    A step that comes late (its time is before that of steps already taken) still does the right
    thing where it can: it never touches a piece that is newer than the step.
    """

    def __init__(self, baseline: Iterable[Vma] = ()) -> None:
        """``baseline``: no two overlap."""
        self._pieces: IntervalMap[Piece] = IntervalMap()
        self._in_transit: dict[Move, Found] = {}
        self._pieces.add(
            (vma.start, vma.end, Piece(Origin(), BEFORE_ALL, None)) for vma in baseline if not is_special(vma)
        )

    def copy(self) -> Space:
        """Return an address space of its own in the same state."""
        twin = Space()
        twin._pieces = self._pieces.copy()
        twin._in_transit = dict(self._in_transit)
        return twin

    def settle(self, alive: set[RowKey], displaced: set[RowKey]) -> None:
        """Drop the pieces of rows that are no longer alive; those of displaced rows are Python's now."""

        def settled(piece: Piece) -> Optional[Piece]:
            if piece.row in displaced:
                return piece._replace(row=None)
            return piece if piece.row is None or piece.row in alive else None

        self._pieces.rebuild(settled)

    def insert(self, row: Row, kernel_keeps_it: bool) -> None:
        """Enter a mapping; it replaces what it covers of older ones."""
        self._put(row.start, row.start + row.length, _piece_of(row, kernel_keeps_it))

    def insert_apart(self, rows: Iterable[Row]) -> None:
        """Enter rows that the kernel keeps and that overlap neither each other nor what is here."""
        self._pieces.add((row.start, row.start + row.length, _piece_of(row, True)) for row in rows)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield what is mapped, ascending."""
        return ((start, end) for start, end, _ in self._pieces)

    def rows(self) -> set[RowKey]:
        """Return the rows of the kernel that stand for something here."""
        return {piece.row for _, _, piece in self._pieces if piece.row is not None}

    def origins(self) -> set[Origin]:
        """Return whatever something is left of here."""
        return {piece.origin for _, _, piece in self._pieces}

    def mappers(self) -> set[ThreadId]:
        """Return who mapped what is here or on its way."""
        found = chain(self._pieces, *self._in_transit.values())
        return {piece.origin.mapper for _, _, piece in found if piece.origin.mapper is not None}

    def holds(self, address: int) -> bool:
        """Say whether something is mapped at ``address``."""
        return self._pieces.at(address) is not None

    def origin_at(self, address: int, at: int) -> Optional[Origin]:
        """Return what lies at ``address`` and came there no later than ``at``."""
        piece = self._pieces.at(address)
        return piece.origin if piece is not None and piece.since <= at else None

    def dig(self, start: int, end: int, at: int) -> Found:
        """Remove and return what came to lie in [start, end) strictly before ``at``."""
        return self._pieces.cut(start, end, lambda piece: piece.since < at)

    def leave(self, move: Move) -> None:
        """First half of a move, at its enter: what goes is taken out and is in transit; once is enough."""
        if move in self._in_transit:
            return
        old, new = move.old, move.new
        if new.size < old.size:
            # A shrinking mremap first unmaps the tail, gaps or not (mm/mremap.c).
            self.dig(old.start + new.size, old.end, move.at)
            old = Interval(old.start, old.start + new.size)
        if new.start == old.start:
            # In place, nothing else than the tail changes.
            last = self._pieces.at(old.end - 1)
            self._in_transit[move] = [(old.end - 1, old.end, last)] if last else []
        else:
            self._in_transit[move] = self.dig(*old, move.at)

    def arrive(self, move: Move) -> None:
        """Second half of a move, at its exit: what is in transit is put at its new place.

        Where a plain move has gaps, its destination keeps what it had: since 6.17 one mremap moves
        several areas, each for itself (mm/mremap.c, remap_move; seen on 6.18).  Where nothing at all was
        known of ``old``, the call's success says that something was: a mapping nobody saw made.
        """
        old, new = move.old, move.new
        found = self._in_transit.pop(move)
        if new.start == old.start:
            origin = found[-1][2].origin if found else Origin(move.done_at)
            self._put(old.end, new.end, Piece(origin, move.done_at, None))
            return
        if not found and move.may_be_empty:
            return
        if not found:
            self._put(new.start, new.end, Piece(Origin(move.done_at), move.done_at, None))
            return
        moved = {
            piece.origin: replace(piece.origin, since=move.done_at, made=new if piece.origin.made else None)
            for _, _, piece in found
        }
        shift = new.start - old.start
        for start, end, piece in found:
            self._put(start + shift, end + shift, Piece(moved[piece.origin], move.done_at, None))
        grown_from = max(new.start + old.size, found[-1][1] + shift)
        self._put(grown_from, new.end, Piece(moved[found[-1][2].origin], move.done_at, None))

    def mappings(self, runners: AnyMapping[Origin, Sequence[ThreadId]]) -> list[Mapping]:
        """Return what is mapped, one mapping for each origin, by address; ``runners`` were put on them."""
        pieces: dict[Origin, list[Interval]] = {}
        for start, end, piece in self._pieces:
            extend(pieces.setdefault(piece.origin, []), start, end)
        return [
            Mapping(
                tuple(of),
                origin.made_at,
                origin.mapper,
                origin.prot,
                origin.flags,
                origin.site,
                origin.since,
                origin.made,
                tuple(runners.get(origin, ())),
            )
            for origin, of in pieces.items()
        ]

    def _put(self, start: int, end: int, piece: Piece) -> None:
        self._pieces.fill(start, end, piece, lambda standing: standing.since < piece.since)
