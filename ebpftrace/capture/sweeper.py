# SPDX-License-Identifier: Apache-2.0
"""Deletes rows of unmapped mappings, and threads without mappings, from the BPF maps, before these fill up.

The BPF programs drop a row when a call unmaps exactly it.  If one munmap ends several rows, or a part of a
row, they stay in the map, and so do the exited threads that mapped them or ran on them.  Python knows from
the events which mappings are gone, and deletes their rows from time to time.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from typing import Optional, Union

from ebpftrace.capture import tables
from ebpftrace.capture.layout import MappingT, Sizes, TaskKeyT, TaskT, ThreadT, key_of
from ebpftrace.capture.tables import Taken
from ebpftrace.ledger.replay import Leftovers
from ebpftrace.model import Row, ThreadId

_CHECK_SECONDS = 1.0
"""Least time between two checks: entries seen in one are old enough for the ledger in the next."""

_SWEEPS = 2
"""Consecutive sweeps: threads must be found idle twice (``Ledger.leftovers``)."""

_WORK_SHARE = 1000
"""Checks of the tables use at most 1/1000 of a CPU."""

_REST_SHARE = 5000
"""While the tables do not grow, checks use at most 1/5000 of a CPU."""

_SWEEP_SHARE = 100
"""Sweeps repeated for entries that were too young at the last one use at most 1/100 of a CPU."""

_TABLES = {
    "mappings": (ctypes.c_uint64, MappingT),
    "exited": (TaskKeyT, TaskT),
    "threads": (ctypes.c_uint32, ThreadT),
}


class Sweeper:
    """Checks how full the tables are, and deletes from them."""

    def __init__(self, fds: Mapping[str, int], sizes: Sizes) -> None:
        """``fds``: file descriptors of the tables by name."""
        self._fds = fds
        self._entries = {"mappings": sizes.mappings, "exited": sizes.exited, "threads": sizes.threads}
        self._limits = {name: entries // 2 for name, entries in self._entries.items()}
        self._counts: dict[str, int] = {}
        """Entries at the last check."""
        self._check_at = 0.0
        self._sweeps_due = 0
        self._sweep_began: Optional[float] = None
        self._again_at = 0.0
        self._unjudged: set[int] = set()
        """Address spaces where the last sweep found entries that were too young to judge."""
        self._unseen: set[tuple[int, int, int]] = set()
        self.lost = 0
        """Rows deleted by mistake, and threads that were missing from the table for a moment."""

    def crowded(self) -> bool:
        """Say whether it is time to sweep: half of what the last sweep left free has been filled.

        A table that is half full is swept again for entries that the last sweep could not judge.
        """
        now = time.monotonic()
        # CPU time, so that waiting for a busy host does not make the checks rarer.
        began = time.thread_time()
        if self._sweep_began is not None:
            self._again_at = now + (began - self._sweep_began) * _SWEEP_SHARE
            self._sweep_began = None
        if now < self._check_at:
            return False
        self._check_at = now + _CHECK_SECONDS
        if self._sweeps_due:
            self._sweeps_due -= 1
            self._sweep_began = began
            self._unjudged.clear()
            return True
        counts = self._count()
        if any(count > self._limits[name] for name, count in counts.items()):
            self._sweeps_due = _SWEEPS
        elif self._is_worth_another(counts, now):
            self._sweeps_due = 1
        else:
            is_filling = any(count > self._counts.get(name, 0) for name, count in counts.items())
            share = _WORK_SHARE if is_filling else _REST_SHARE
            self._check_at = max(self._check_at, now + (time.thread_time() - began) * share)
        self._counts = counts
        return False

    def _is_worth_another(self, counts: Mapping[str, int], now: float) -> bool:
        half_full = any(count > self._entries[name] // 2 for name, count in counts.items())
        return half_full and bool(self._unjudged) and now >= self._again_at

    def sweep(self, space: int, leftovers: Leftovers) -> list[Row]:
        """Delete the leftovers; return newer rows taken in their place, which the ledger must keep now."""
        self._unseen.clear()
        if not leftovers.are_all:
            self._unjudged.add(space)
        taken = [self._take_row(space, row) for row in leftovers.rows]
        for thread in leftovers.threads:
            tables.delete(self._fds["exited"], TaskKeyT(started_at=thread.started_at, tid=thread.tid))
        for run in leftovers.runs:
            self._take_stack_user(run.thread)
        self._limits = {name: (self._entries[name] + count) // 2 for name, count in self._count().items()}
        return [row for row in taken if row is not None]

    def evicted(self, space: int, row: Row) -> None:
        """Note that a BPF program replaced this row by another one with the same start."""
        if (space, row.start, row.since) in self._unseen:
            self.lost += 1

    def _take_row(self, space: int, row: Row) -> Optional[Row]:
        """Delete one row; return the newer row that was deleted in its place, if any."""
        fd = self._fds["mappings"]
        key = ctypes.c_uint64(key_of(space, row.start))
        found = MappingT()
        taken = tables.take(fd, key, found, lambda: bool(found.since == row.since))
        if taken is Taken.UNSEEN:
            self._unseen.add((space, row.start, row.since))
        if taken is not Taken.ANOTHER or _put_back(fd, key, found):
            return None
        mapper = ThreadId(found.mapper_tid, found.mapper_started_at)
        return Row(
            row.start, found.length, found.since, found.made_at, mapper, found.prot, found.flags, found.site
        )

    def _take_stack_user(self, thread: ThreadId) -> None:
        """Delete an exited thread whose stack is unmapped, unless its tid has been reused."""
        fd = self._fds["threads"]
        key = ctypes.c_uint32(thread.tid)
        found = ThreadT()
        taken = tables.take(
            fd, key, found, lambda: bool(found.task.exited_at and found.task.started_at == thread.started_at)
        )
        if taken is Taken.ANOTHER:
            _put_back(fd, key, found)
            self.lost += 1

    def _count(self) -> dict[str, int]:
        return {name: tables.count(self._fds[name], *types) for name, types in _TABLES.items()}


def _put_back(fd: int, key: Union[ctypes.c_uint32, ctypes.c_uint64], leaf: ctypes.Structure) -> bool:
    """Write back an entry taken by mistake, unless there is a newer one or the table is full."""
    try:
        return tables.inserter(fd, key, leaf)()
    except tables.TableRefused:
        return False
