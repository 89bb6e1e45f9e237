# SPDX-License-Identifier: Apache-2.0
"""Exits that the kernel side was not told of, made good by what /proc lists.

The kernel skips a tracepoint's programs where another program runs on the same CPU (``kernel/losses.py``),
and before Linux 6.7 it doesn't even count that (kernel/trace/bpf_trace.c, trace_call_bpf).  A thread that
exited unseen would own what it left for ever, and whoever gets its number next would be taken for it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping

from ebpftrace.kernel import tables
from ebpftrace.kernel.layout import LifeKeyT, LifeT, ThreadT

_EVERY = 1.0
"""Seconds between two looks ..."""
_WORK_SHARE = 100
"""... which take no more than one in so many seconds of CPU."""
_AFTER_ADDED = 2.0
"""Seconds after threads were added: who exited in that moment is found by ``registration.confirm``."""

_EXITED_AT = ThreadT.life.offset + LifeT.exited_at.offset


class MissedExits:
    """Looks now and then for threads that live by the table but not by /proc."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        """``fds``: file descriptors of the tables by name."""
        self._fds = fds
        self._look_at = 0.0
        self.count = 0
        """Found so far."""

    def threads_added(self) -> None:
        """Leave them in peace for a while."""
        self._look_at = time.monotonic() + _AFTER_ADDED

    def look(self) -> None:
        """Look, if it is time to; who is found has exited at this moment, as far as is known.

        A task is in /proc until after its exit has been told of (kernel/exit.c: do_exit, release_task).
        """
        if time.monotonic() < self._look_at:
            return
        used = time.thread_time()
        for tid in tables.u32_keys(self._fds["threads"], ThreadT, _EXITED_AT):
            if not os.path.lexists(f"/proc/{tid}"):
                self._bury(tid)
        rest = max(_EVERY, (time.thread_time() - used) * _WORK_SHARE)
        self._look_at = time.monotonic() + rest

    def _bury(self, tid: int) -> None:
        """Write what the kernel side would have written at its exit (bpf/threads.h, thread_left)."""
        key, thread = ctypes.c_uint32(tid), ThreadT()
        if not tables.lookup(self._fds["threads"], key, thread) or thread.life.exited_at:
            return  # it was told of, only just
        life, newest = thread.life, thread.newest
        if thread.waits_for_exec:
            return
        self.count += 1
        life.exited_at = time.monotonic_ns()
        if newest.row.length:
            tables.inserter(self._fds["mappings"], ctypes.c_uint64(newest.key), newest.row)()
            newest.row.length = 0
        tables.update(self._fds["threads"], key, thread)
        if life.outstanding > 0 or life.brk_growth or life.stood:
            stack, life.stack = life.stack, 0
            tables.update(self._fds["exited"], LifeKeyT(born=life.born, tid=tid), life)
            life.stack = stack
        if not life.stack:
            tables.delete(self._fds["threads"], key)
