# SPDX-License-Identifier: Apache-2.0
"""An address space to which rows, unmapped ranges and moves are applied one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, Optional

from ebpftrace.addresses import IntervalMap, extend
from ebpftrace.ledger.events import Remapped
from ebpftrace.model import Interval, Mapping, Row, ThreadId, Vma
from ebpftrace.vmas import HEAP

RowKey = tuple[int, int]
"""Identifies a row of the BPF map for the whole trace: (start, since)."""

BEFORE_ALL = -1
"""``since`` of the baseline: older than any event, so that every event acts on it."""

SPECIAL_NAMES = (HEAP, "[stack", "[vdso]", "[vvar", "[vsyscall]", "[vectors]", "[sigpage]", "[uprobes]")
"""How the kernel's names of areas begin that no mmap call made (fs/proc/task_mmu.c, arch vdso code)."""


def is_special(vma: Vma) -> bool:
    """Say whether no mmap call made this area, so that it is no mapping of the ledger.

    ``[heap]`` is grown by brk(2), which is counted as brk growth; ``[stack]`` grows by page faults; the
    kernel makes the others.  None of them can be an orphan, and none has a mapper. Named anonymous memory
    (``[anon:...]``, PR_SET_VMA_ANON_NAME) is a mapping like any other.
    """
    return vma.path.startswith(SPECIAL_NAMES)


@dataclass(eq=False)
class RowOrigin:
    """The call that put a mapping where it is; compared by identity: one origin, one mapping."""

    since: Optional[int] = None
    made_at: Optional[int] = None
    mapper: Optional[ThreadId] = None
    prot: Optional[int] = None
    flags: Optional[int] = None
    site: int = 0
    made: Optional[Interval] = None


class Piece(NamedTuple):
    """What is mapped at a range of addresses."""

    origin: RowOrigin
    since: int
    """Since when it is mapped at this range."""
    row: Optional[RowKey]
    """The row of the BPF map that represents it and ends with it; None where there is no row."""


Found = list[tuple[int, int, Piece]]


def whole_mapping(row: Row) -> Mapping:
    """Return the mapping of a row of which nothing has been unmapped."""
    start, length, since, made_at, mapper, prot, flags, site = row
    made = Interval(start, start + length)
    return Mapping((made,), made_at, mapper, prot, flags, site, since, made)


def row_key(row: Row) -> RowKey:
    """Return what identifies the row for the whole trace."""
    return row.start, row.since


def _piece_of(row: Row, is_in_table: bool) -> Piece:
    made = Interval(row.start, row.start + row.length)
    origin = RowOrigin(row.since, row.made_at, row.mapper, row.prot, row.flags, row.site, made)
    return Piece(origin, row.since, row_key(row) if is_in_table else None)


class Space:
    """The pieces of an address space; steps are applied in the order of their times.

    A step may also come late (after steps with later times): it never changes a piece that is newer than
    itself.
    """

    def __init__(self, baseline: Iterable[Vma] = ()) -> None:
        """``baseline``: no two overlap."""
        self._pieces: IntervalMap[Piece] = IntervalMap()
        self._in_transit: dict[Remapped, Found] = {}
        self._pieces.add(
            (vma.start, vma.end, Piece(RowOrigin(), BEFORE_ALL, None))
            for vma in baseline
            if not is_special(vma)
        )

    def copy(self) -> Space:
        """Return an independent address space in the same state."""
        twin = Space()
        twin._pieces = self._pieces.copy()
        twin._in_transit = dict(self._in_transit)
        return twin

    def drop_rows(self, present: set[RowKey], evicted: set[RowKey]) -> None:
        """Drop the pieces whose rows are no longer ``present``; those of evicted rows lose their row."""

        def changed(piece: Piece) -> Optional[Piece]:
            if piece.row in evicted:
                return piece._replace(row=None)
            return piece if piece.row is None or piece.row in present else None

        self._pieces.rebuild(changed)

    def insert(self, row: Row, is_in_table: bool) -> None:
        """Add a mapping, which replaces older pieces; ``is_in_table`` if its row is in the BPF map."""
        self._put(row.start, row.start + row.length, _piece_of(row, is_in_table))

    def insert_separately(self, rows: Iterable[Row]) -> None:
        """Add rows of the BPF map that overlap neither each other nor any piece."""
        self._pieces.add((row.start, row.start + row.length, _piece_of(row, True)) for row in rows)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the mapped ranges, ascending."""
        return ((start, end) for start, end, _ in self._pieces)

    def rows(self) -> set[RowKey]:
        """Return the rows that any piece belongs to."""
        return {piece.row for _, _, piece in self._pieces if piece.row is not None}

    def origins(self) -> set[RowOrigin]:
        """Return the origins of all pieces."""
        return {piece.origin for _, _, piece in self._pieces}

    def mappers(self) -> set[ThreadId]:
        """Return the mappers of all pieces, also of those that are being moved."""
        found = chain(self._pieces, *self._in_transit.values())
        return {piece.origin.mapper for _, _, piece in found if piece.origin.mapper is not None}

    def contains(self, address: int) -> bool:
        """Say whether something is mapped at ``address``."""
        return self._pieces.at(address) is not None

    def origin_at(self, address: int, at: int) -> Optional[RowOrigin]:
        """Return the origin at ``address`` if it has been mapped there since ``at`` or longer."""
        piece = self._pieces.at(address)
        return piece.origin if piece is not None and piece.since <= at else None

    def remove(self, start: int, end: int, at: int) -> Found:
        """Remove and return the pieces that were placed in [start, end) strictly before ``at``."""
        return self._pieces.cut(start, end, lambda piece: piece.since < at)

    def begin_move(self, move: Remapped) -> None:
        """First half of a move, at its entry: take the pieces out; a repetition does nothing."""
        if move in self._in_transit:
            return
        old, new = move.old, move.new
        if new.size < old.size:
            # A shrinking mremap first unmaps the tail, gaps or not (mm/mremap.c).
            self.remove(old.start + new.size, old.end, move.at)
            old = Interval(old.start, old.start + new.size)
        if new.start == old.start:
            # In place only the tail changes.
            last = self._pieces.at(old.end - 1)
            self._in_transit[move] = [(old.end - 1, old.end, last)] if last else []
        else:
            self._in_transit[move] = self.remove(*old, move.at)

    def finish_move(self, move: Remapped) -> None:
        """Second half of a move, at its exit: put the pieces at their new addresses.

        Where ``old`` has gaps, the destination keeps what it had: since 6.17 one mremap moves several
        areas one by one (mm/mremap.c, remap_move; seen on 6.18).  If nothing was known at ``old``, the call's
        success proves that something was mapped there: a mapping whose call was not seen.
        """
        old, new = move.old, move.new
        found = self._in_transit.pop(move)
        if new.start == old.start:
            origin = found[-1][2].origin if found else RowOrigin(move.done_at)
            self._put(old.end, new.end, Piece(origin, move.done_at, None))
            return
        if not found and move.may_be_empty:
            return
        if not found:
            self._put(new.start, new.end, Piece(RowOrigin(move.done_at), move.done_at, None))
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

    def mappings(self, stack_users: AnyMapping[RowOrigin, Sequence[ThreadId]]) -> list[Mapping]:
        """Return the mappings, one for each origin, by address, with the threads that used them as stacks."""
        pieces: dict[RowOrigin, list[Interval]] = {}
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
                tuple(stack_users.get(origin, ())),
            )
            for origin, of in pieces.items()
        ]

    def _put(self, start: int, end: int, piece: Piece) -> None:
        self._pieces.fill(start, end, piece, lambda present: present.since < piece.since)
