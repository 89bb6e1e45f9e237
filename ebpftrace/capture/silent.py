# SPDX-License-Identifier: Apache-2.0
"""Followed processes that live on without a call that the BPF programs see.

A process gets its number, and with it a ledger, from its own calls (bpf/threads.h, settle).  One that makes
none may grow all the same, as it fills what it has mapped before.  So such processes are looked for in the
table of threads.  Only a process itself writes its entry there: it takes the number at its next call.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Optional

from ebpftrace.capture import tables
from ebpftrace.capture.kernel_events import Settled
from ebpftrace.capture.layout import (
    ADDRESS_BITS,
    NO_SPACE,
    GivenT,
    LibraryT,
    RangeT,
    SpaceConfigT,
    SpaceT,
    TaskT,
    ThreadT,
    WalkT,
)
from ebpftrace.capture.snapshot import decode_name

_CHECK_SECONDS = 0.5
"""Least time between two checks."""
_WORK_SHARE = 100
"""Checks use at most 1/100 of a CPU."""

_NEVER = (1 << 64) - 1
_WORD = 4
_SPACE_WORD = (ThreadT.task.offset + TaskT.space.offset) // _WORD
_WORDS = ctypes.sizeof(ThreadT) // _WORD


class Silent:
    """Finds processes that have lived for ``settle_ns`` without a number, and gives them one."""

    def __init__(self, fds: Mapping[str, int], settle_ns: int) -> None:
        """``fds``: file descriptors of the tables by name."""
        self._fds = fds
        self._settle_ns = settle_ns
        self._check_at = 0.0
        self.waiting = 0
        """Processes for which there was no number at the last check."""

    def find(self) -> Iterator[tuple[int, Optional[Settled]]]:
        """Yield the numbers that are given now, if it is time to check, as the programs would tell them.

        None in place of the event: the process has ended meanwhile, and the number is to be given back.
        """
        if time.monotonic() < self._check_at:
            return
        used = time.thread_time()
        self.waiting = 0
        for thread in list(self._unnumbered()):
            given = self._give(thread)
            if given is not None:
                yield given
        rest = max(_CHECK_SECONDS, (time.thread_time() - used) * _WORK_SHARE)
        self._check_at = time.monotonic() + rest

    def forget(self, spaces: Collection[int]) -> None:
        """Delete what is left of the processes that had these numbers."""
        for tid, given in tables.entries(self._fds["given"], ctypes.c_uint32, GivenT):
            if given.space in spaces:
                tables.delete(self._fds["given"], ctypes.c_uint32(tid.value))

    def _unnumbered(self) -> Iterator[ThreadT]:
        """The processes, by their only threads, that are old enough."""
        before = time.monotonic_ns() - self._settle_ns
        for _, leaves in tables.batches(self._fds["threads"], ctypes.c_uint32, ThreadT):
            # Of ten thousand threads few are of interest: no object is made for the others.
            spaces = leaves.cast("B").cast("I")[_SPACE_WORD::_WORDS]
            for index, space in enumerate(spaces):
                if space != NO_SPACE:
                    continue
                thread = ThreadT.from_buffer_copy(leaves, index * ctypes.sizeof(ThreadT))
                is_alive = not thread.task.exited_at and not thread.waits_for_exec
                if is_alive and thread.task.started_at <= before:
                    yield thread

    def _give(self, thread: ThreadT) -> Optional[tuple[int, Optional[Settled]]]:
        """Give a number to a process; None if it has one, or none is left."""
        task, at = thread.task, time.monotonic_ns()
        tid, given = ctypes.c_uint32(task.tid), GivenT()
        if tables.lookup(self._fds["given"], tid, given):
            if given.started_at != task.started_at:  # of a process whose end was missed
                tables.delete(self._fds["given"], tid)
            return None
        number = ctypes.c_uint32()
        if not tables.pop(self._fds["numbers"], number):
            self.waiting += 1
            return None
        self._prepare(number, task.tgid, at)
        given = GivenT(started_at=task.started_at, space=number.value)
        if not tables.inserter(self._fds["given"], tid, given)():
            tables.push(self._fds["numbers"], number)  # a call of the process was first
            return None
        now = ThreadT()
        is_there = tables.lookup(self._fds["threads"], tid, now)
        if not is_there or now.task.started_at != task.started_at or now.task.exited_at:
            return number.value, None
        name = decode_name(task.name)
        return number.value, Settled(
            task.tgid, thread.image, name, task.started_at, at, thread.parent or None
        )

    def _prepare(self, number: ctypes.c_uint32, tgid: int, at: int) -> None:
        """Write what the BPF programs write when they take a number (bpf/threads.h, settle)."""
        everywhere = RangeT(0, 1 << ADDRESS_BITS)
        config = SpaceConfigT(all_code=everywhere, baseline_at=_NEVER)
        config.code[0] = everywhere
        tables.update(self._fds["spaces"], number, SpaceT(settled_at=at))
        tables.update(self._fds["space_configs"], number, config)
        tables.update(self._fds["walks"], number, WalkT(tgid=tgid))
        tables.update(self._fds["libraries"], number, LibraryT())
