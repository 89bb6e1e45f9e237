# SPDX-License-Identifier: Apache-2.0
"""The contents of the BPF maps about one address space at one moment."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ebpftrace.capture import tables
from ebpftrace.capture.layout import (
    CALLS,
    CountT,
    SiteT,
    SpaceT,
    TaskKeyT,
    TaskT,
    ThreadT,
)
from ebpftrace.capture.rows import NewestRow, Rows, newest_row, no_rows, read_rows
from ebpftrace.model import Calls, Failures, Losses, StackSighting, Thread, ThreadId, ThreadStart

_READINGS = 100
"""Attempts to read a row that its thread is writing: about one in a thousand readings is half-written."""


@dataclass
class Snapshot:
    """The tables of one address space.  The target runs during the reading: rows are not of one instant."""

    rows: Rows = field(default_factory=no_rows)
    threads: dict[ThreadId, Thread] = field(default_factory=dict)
    """Live threads, and exited ones whose mappings are left."""
    runs: list[ThreadStart] = field(default_factory=list)
    """Runs of live threads, and of exited ones whose stacks may still be mapped."""
    sightings: list[StackSighting] = field(default_factory=list)
    """Stack pointers outside of the stack that the thread was given; a thread may occur twice."""
    brk_growth: dict[ThreadId, int] = field(default_factory=dict)
    calls: Calls = Calls()
    losses: Losses = Losses()
    dropped_copy_bytes: int = 0
    """Stack copies, of all address spaces, dropped because too many waited."""


def read_snapshots(
    fds: Mapping[str, int], spaces: Iterable[int], recursion_misses: int, lost_rows: int = 0
) -> dict[int, Snapshot]:
    """Read the tables (name -> file descriptor) of these address spaces.

    ``recursion_misses`` and ``lost_rows`` count for each of them, as it is not known which they concern.
    Raises CannotTrace.
    """
    found = {space: Snapshot() for space in spaces}
    counts: dict[int, list[int]] = {space: [0] * len(CALLS) for space in found}
    newest: list[NewestRow] = []
    for tid, thread in tables.entries(fds["threads"], ctypes.c_uint32, ThreadT):
        if thread.task.space not in found or tid.value != thread.task.tid:
            continue
        snapshot = found[thread.task.space]
        _add_run(snapshot, thread.task)
        if not thread.task.exited_at:  # the next table has the exited ones
            lost_rows += not _add_newest(newest, fds["threads"], tid, thread)
            _add_task(snapshot, thread.task)
            counts[thread.task.space] = [a + b for a, b in zip(counts[thread.task.space], thread.calls)]
    for _, task in tables.entries(fds["exited"], TaskKeyT, TaskT):
        if task.space in found:
            _add_task(found[task.space], task)
            _add_run(found[task.space], task)
    failed = _read_failures(fds["failures"])
    rows = read_rows(fds["mappings"], newest)
    for space, snapshot in found.items():
        snapshot.rows = rows[space]
        record = SpaceT()
        if tables.lookup(fds["spaces"], ctypes.c_uint32(space), record):
            totals = {name: a + b for name, a, b in zip(CALLS, counts[space], record.calls)}
            snapshot.calls = Calls(**totals, failed=failed[space])
            snapshot.losses = Losses(
                events=record.lost_events + max(recursion_misses, record.lost_runs),
                mappings=record.lost_mappings + lost_rows,
                threads=record.lost_threads,
            )
    return found


def _read_failures(fd: int) -> defaultdict[int, tuple[Failures, ...]]:
    """Numbers of failed calls, by address space, most first (bpf/mappings.h, failure_key)."""
    found: defaultdict[int, list[Failures]] = defaultdict(list)
    for key, count in tables.entries(fd, ctypes.c_uint32, CountT):
        call, error = CALLS[key.value >> 12 & 0xF], key.value & 0xFFF
        found[key.value >> 16].append(Failures(call, error, count.count))
    return defaultdict(
        tuple, {space: tuple(sorted(each, key=lambda calls: -calls.times)) for space, each in found.items()}
    )


class BrkMoves(NamedTuple):
    """How the calls of one site moved the break."""

    growth: int
    """Net bytes."""
    calls: int


def read_brk_moves(fd: int) -> dict[int, BrkMoves]:
    """Return how the break was moved, by site."""
    return {
        key.value: BrkMoves(site.brk_growth, site.brk_calls)
        for key, site in tables.entries(fd, ctypes.c_uint64, SiteT)
        if site.brk_calls
    }


def decode_name(raw: bytes) -> str:
    """Return a thread's name as text; bytes that are not UTF-8 become surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def _add_newest(newest: list[NewestRow], fd: int, tid: ctypes.c_uint32, thread: ThreadT) -> bool:
    """Add the row that the thread has cached, if any; False where it could not be read."""
    for _ in range(_READINGS):
        if not thread.newest.row.length:
            return True
        row = newest_row(thread.newest)
        if row is not None:
            newest.append(row)
            return True
        thread = ThreadT()
        if not tables.lookup(fd, tid, thread):
            return True  # the thread has exited, and its row is in the table now
    return False


def _add_task(snapshot: Snapshot, task: TaskT) -> None:
    thread = _thread(task)
    snapshot.threads[thread.id] = thread
    if task.brk_growth:
        snapshot.brk_growth[thread.id] = task.brk_growth
    if task.last_sp:
        snapshot.sightings.append(StackSighting(thread.id, task.last_sp, task.last_sp_at))


def _add_run(snapshot: Snapshot, task: TaskT) -> None:
    if task.stack:
        snapshot.runs.append(_run(task))


def _creator(task: TaskT) -> Optional[ThreadId]:
    return ThreadId(task.creator_tid, task.creator_started_at) if task.creator_tid else None


def _exited_at(task: TaskT) -> Optional[int]:
    """When the task exited by itself; None if it ran until its process ended."""
    return None if task.dies_with else task.exited_at or None


def _thread(task: TaskT) -> Thread:
    creator = _creator(task)
    return Thread(
        id=ThreadId(task.tid, task.started_at),
        name=decode_name(task.name),
        tgid=task.tgid,
        exited_at=_exited_at(task),
        creator=creator,
        creator_name=decode_name(task.creator_name) if creator else None,
        before_attach=creator is None,
        inner_tid=task.inner_tid or None,
    )


def _run(task: TaskT) -> ThreadStart:
    return ThreadStart(
        thread=ThreadId(task.tid, task.started_at),
        name=decode_name(task.name),
        stack=task.stack,
        stack_size=task.stack_size,
        exited_at=_exited_at(task),
        creator=ThreadId(task.creator_tid, task.creator_started_at),
        creator_name=decode_name(task.creator_name),
        site=task.site,
        tgid=task.tgid,
        creator_stack_pointer=task.creator_sp,
        inner_tid=task.inner_tid or None,
    )
