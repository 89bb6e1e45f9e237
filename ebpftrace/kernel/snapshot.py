# SPDX-License-Identifier: Apache-2.0
"""What the kernel's tables say of one address space at one moment."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ebpftrace.kernel import tables
from ebpftrace.kernel.layout import (
    CALLS,
    CountT,
    LifeKeyT,
    LifeT,
    SiteT,
    SpaceT,
    ThreadT,
)
from ebpftrace.kernel.rows import NewestRow, Rows, newest_row, no_rows, read_rows
from ebpftrace.model import Calls, Failures, Losses, Run, Stand, Thread, ThreadId

_READINGS = 100
"""Of a row that its thread writes meanwhile: one in a thousand or so is half written."""


@dataclass
class Snapshot:
    """The tables of one address space.  The target went on meanwhile: rows are not of one instant."""

    rows: Rows = field(default_factory=no_rows)
    threads: dict[ThreadId, Thread] = field(default_factory=dict)
    """Live threads, and exited ones that have mappings left."""
    runs: list[Run] = field(default_factory=list)
    """Of live threads, and of exited ones whose stacks may stand."""
    stands: list[Stand] = field(default_factory=list)
    """Where threads stood that were on no stack they were given; one may be told twice."""
    brk_growth: dict[ThreadId, int] = field(default_factory=dict)
    calls: Calls = Calls()
    losses: Losses = Losses()
    dropped_copy_bytes: int = 0
    """Stack copies, of all address spaces, that came while too many waited."""


def read_snapshots(
    fds: Mapping[str, int], spaces: Iterable[int], skipped_runs: int, lost_rows: int = 0
) -> dict[int, Snapshot]:
    """Read the tables (name -> file descriptor) of these address spaces.

    ``skipped_runs`` and ``lost_rows`` count for each of them: nobody knows whose they were.
    Raises CannotTrace.
    """
    found = {space: Snapshot() for space in spaces}
    counts: dict[int, list[int]] = {space: [0] * len(CALLS) for space in found}
    newest: list[NewestRow] = []
    for tid, thread in tables.entries(fds["threads"], ctypes.c_uint32, ThreadT):
        if thread.life.space not in found or tid.value != thread.life.tid:
            continue
        snapshot = found[thread.life.space]
        _add_run(snapshot, thread.life)
        if not thread.life.exited_at:  # what is to be told of the others stands in the next table
            lost_rows += not _add_newest(newest, fds["threads"], tid, thread)
            _add_life(snapshot, thread.life)
            counts[thread.life.space] = [a + b for a, b in zip(counts[thread.life.space], thread.calls)]
    for _, life in tables.entries(fds["exited"], LifeKeyT, LifeT):
        if life.space in found:
            _add_life(found[life.space], life)
            _add_run(found[life.space], life)
    failed = _read_failures(fds["failures"])
    rows = read_rows(fds["mappings"], newest)
    for space, snapshot in found.items():
        snapshot.rows = rows[space]
        record = SpaceT()
        if tables.lookup(fds["spaces"], ctypes.c_uint32(space), record):
            totals = {name: a + b for name, a, b in zip(CALLS, counts[space], record.calls)}
            snapshot.calls = Calls(**totals, failed=failed[space])
            snapshot.losses = Losses(
                events=record.lost_events + max(skipped_runs, record.lost_runs),
                mappings=record.lost_mappings + lost_rows,
                threads=record.lost_threads,
            )
    return found


def _read_failures(fd: int) -> defaultdict[int, tuple[Failures, ...]]:
    """How often which calls failed, by address space, most first (bpf/mappings.h, failure_key)."""
    found: defaultdict[int, list[Failures]] = defaultdict(list)
    for key, count in tables.entries(fd, ctypes.c_uint32, CountT):
        call, error = CALLS[key.value >> 12 & 0xF], key.value & 0xFFF
        found[key.value >> 16].append(Failures(call, error, count.count))
    return defaultdict(
        tuple, {space: tuple(sorted(of, key=lambda one: -one.times)) for space, of in found.items()}
    )


class BrkMoves(NamedTuple):
    """What the calls of one site did to the break."""

    growth: int
    """Bytes, net."""
    calls: int


def read_brk_moves(fd: int) -> dict[int, BrkMoves]:
    """How the break was moved, by site (signature), from the table of sites."""
    return {
        key.value: BrkMoves(site.brk_growth, site.brk_calls)
        for key, site in tables.entries(fd, ctypes.c_uint64, SiteT)
        if site.brk_calls
    }


def decode_name(raw: bytes) -> str:
    """Return a thread's name as text; what is not UTF-8 becomes surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def _add_newest(newest: list[NewestRow], fd: int, tid: ctypes.c_uint32, thread: ThreadT) -> bool:
    """Add the mapping that the thread keeps to itself, if it does; False where it cannot be read."""
    for _ in range(_READINGS):
        if not thread.newest.row.length:
            return True
        row = newest_row(thread.newest)
        if row is not None:
            newest.append(row)
            return True
        thread = ThreadT()
        if not tables.lookup(fd, tid, thread):
            return True  # it exited: its row is in the table now
    return False


def _add_life(snapshot: Snapshot, life: LifeT) -> None:
    thread = _thread(life)
    snapshot.threads[thread.id] = thread
    if life.brk_growth:
        snapshot.brk_growth[thread.id] = life.brk_growth
    if life.stood:
        snapshot.stands.append(Stand(thread.id, life.stood, life.stood_at))


def _add_run(snapshot: Snapshot, life: LifeT) -> None:
    if life.stack:
        snapshot.runs.append(_run(life))


def _creator(life: LifeT) -> Optional[ThreadId]:
    return ThreadId(life.creator_tid, life.creator_born) if life.creator_tid else None


def _exited_at(life: LifeT) -> Optional[int]:
    """When it exited by itself: who ran until its process ended had not."""
    return None if life.dies_with else life.exited_at or None


def _thread(life: LifeT) -> Thread:
    creator = _creator(life)
    return Thread(
        id=ThreadId(life.tid, life.born),
        name=decode_name(life.name),
        tgid=life.tgid,
        exited_at=_exited_at(life),
        creator=creator,
        creator_name=decode_name(life.creator_name) if creator else None,
        before_attach=creator is None,
    )


def _run(life: LifeT) -> Run:
    return Run(
        thread=ThreadId(life.tid, life.born),
        name=decode_name(life.name),
        stack=life.stack,
        stack_size=life.stack_size,
        exited_at=_exited_at(life),
        creator=ThreadId(life.creator_tid, life.creator_born),
        creator_name=decode_name(life.creator_name),
        site=life.site,
        tgid=life.tgid,
        creator_stack_pointer=life.creator_sp,
    )
