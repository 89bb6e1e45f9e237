# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's tables from filling up with what nothing is left of.

The kernel side drops a row when a call ends it by its start.  Where one munmap ends several, or what was
overlaid, rows linger, and with them the exited threads that mapped them or whose stacks they were.
Python, which knows from the events that they are gone, deletes them now and then.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from typing import Optional, Union

from ebpftrace.kernel import tables
from ebpftrace.kernel.layout import LifeKeyT, LifeT, MappingT, Sizes, ThreadT, key_of
from ebpftrace.kernel.tables import Taken
from ebpftrace.ledger.replay import Leftovers
from ebpftrace.model import Row, ThreadId

_LONGEST_WAIT = 1.0
"""Seconds until what was seen in a table is old enough for the ledger to judge (``Ledger.compact``)."""

_SWEEPS = 2
"""One after the other: threads must be found idle twice (``Ledger.leftovers``)."""

_WORK_SHARE = 1000
"""Looks at the tables take no more than one in so many seconds of CPU ..."""

_REST_SHARE = 5000
"""... of tables in which nothing has come since the last one, even less: an idle target costs no more ..."""

_SWEEP_SHARE = 100
"""... and so do sweeps for the sake of what was too young at the last one."""

_TABLES = {
    "mappings": (ctypes.c_uint64, MappingT),
    "exited": (LifeKeyT, LifeT),
    "threads": (ctypes.c_uint32, ThreadT),
}


class Sweeper:
    """Watches how full the tables are, and deletes from them."""

    def __init__(self, fds: Mapping[str, int], sizes: Sizes) -> None:
        """``fds``: file descriptors of the tables by name."""
        self._fds = fds
        self._room = {"mappings": sizes.mappings, "exited": sizes.exited, "threads": sizes.threads}
        self._limits = {name: room // 2 for name, room in self._room.items()}
        self._counts: dict[str, int] = {}
        """At the last look."""
        self._look_at = 0.0
        self._sweeps_due = 0
        self._sweep_began: Optional[float] = None
        self._again_at = 0.0
        self._unjudged: set[int] = set()
        """Address spaces where the last sweep found something too young."""
        self._unseen: set[tuple[int, int, int]] = set()
        self.lost = 0
        """Rows deleted by mistake, and threads that were away for a moment."""

    def crowded(self) -> bool:
        """Say whether it is time to sweep: half of what the last sweep left free was full a while ago.

        A table that is half full is swept again for what the last sweep could not judge.
        """
        now = time.monotonic()
        # CPU time: a busy host that keeps us waiting is no reason to look less often.
        began = time.thread_time()
        if self._sweep_began is not None:
            self._again_at = now + (began - self._sweep_began) * _SWEEP_SHARE
            self._sweep_began = None
        if now < self._look_at:
            return False
        self._look_at = now + _LONGEST_WAIT
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
            self._look_at = max(self._look_at, now + (time.thread_time() - began) * share)
        self._counts = counts
        return False

    def _is_worth_another(self, counts: Mapping[str, int], now: float) -> bool:
        half_full = any(count > self._room[name] // 2 for name, count in counts.items())
        return half_full and bool(self._unjudged) and now >= self._again_at

    def sweep(self, space: int, leftovers: Leftovers) -> list[Row]:
        """Delete them; return rows that were found in their place and that the ledger must keep now."""
        self._unseen.clear()
        if not leftovers.are_all:
            self._unjudged.add(space)
        ousted = [self._take_row(space, row) for row in leftovers.rows]
        for thread in leftovers.threads:
            tables.delete(self._fds["exited"], LifeKeyT(born=thread.born, tid=thread.tid))
        for run in leftovers.runs:
            self._take_runner(run.thread)
        self._limits = {name: (self._room[name] + count) // 2 for name, count in self._count().items()}
        return [row for row in ousted if row is not None]

    def displaced(self, space: int, row: Row) -> None:
        """Take in that the kernel side put another row in the place of this one."""
        if (space, row.start, row.since) in self._unseen:
            self.lost += 1

    def _take_row(self, space: int, row: Row) -> Optional[Row]:
        """Delete one row; return the newer one that lost its place by that."""
        fd = self._fds["mappings"]
        key = ctypes.c_uint64(key_of(space, row.start))
        found = MappingT()
        taken = tables.take(fd, key, found, lambda: bool(found.since == row.since))
        if taken is Taken.UNSEEN:
            self._unseen.add((space, row.start, row.since))
        if taken is not Taken.ANOTHER or _put_back(fd, key, found):
            return None
        mapper = ThreadId(found.mapper_tid, found.mapper_born)
        return Row(
            row.start, found.length, found.since, found.made_at, mapper, found.prot, found.flags, found.site
        )

    def _take_runner(self, thread: ThreadId) -> None:
        """Delete a thread that exited and whose stack is gone, unless its number is another's by now."""
        fd = self._fds["threads"]
        key = ctypes.c_uint32(thread.tid)
        found = ThreadT()
        taken = tables.take(
            fd, key, found, lambda: bool(found.life.exited_at and found.life.born == thread.born)
        )
        if taken is Taken.ANOTHER:
            _put_back(fd, key, found)
            self.lost += 1

    def _count(self) -> dict[str, int]:
        return {name: tables.count(self._fds[name], *types) for name, types in _TABLES.items()}


def _put_back(fd: int, key: Union[ctypes.c_uint32, ctypes.c_uint64], leaf: ctypes.Structure) -> bool:
    """Write what was taken by mistake, unless there is something newer, or no room."""
    try:
        return tables.inserter(fd, key, leaf)()
    except tables.TableRefused:
        return False
