# SPDX-License-Identifier: Apache-2.0
"""Exits that the BPF programs missed, found by comparing their table of threads with /proc.

The kernel skips a program while another one runs on the same CPU (``capture/stats.py``), and before
Linux 6.7 it does not count that (kernel/trace/bpf_trace.c, trace_call_bpf).  A thread whose exit was missed
would own its mappings for ever, and the next thread with its tid would be mistaken for it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping

from ebpftrace.capture import tables
from ebpftrace.capture.layout import TaskKeyT, TaskT, ThreadT

_CHECK_SECONDS = 1.0
"""Least time between two checks."""
_WORK_SHARE = 100
"""Checks use at most 1/100 of a CPU."""
_AFTER_ADDED_SECONDS = 2.0
"""No check so soon after threads were added: ``registration.confirm`` finds those that exited meanwhile."""

_EXITED_AT = ThreadT.task.offset + TaskT.exited_at.offset


class MissedExits:
    """Finds threads that are alive according to the table, but not in /proc."""

    def __init__(self, fds: Mapping[str, int]) -> None:
        """``fds``: file descriptors of the tables by name."""
        self._fds = fds
        self._check_at = 0.0
        self.count = 0
        """Missed exits found so far."""

    def threads_added(self) -> None:
        """Postpone the next check, because threads were added just now."""
        self._check_at = time.monotonic() + _AFTER_ADDED_SECONDS

    def check(self) -> None:
        """Check if it is time to; the present counts as the time of each exit that is found.

        A task stays in /proc until after the tracepoint of its exit (kernel/exit.c: do_exit, release_task).
        """
        if time.monotonic() < self._check_at:
            return
        used = time.thread_time()
        for tid in tables.u32_keys(self._fds["threads"], ThreadT, _EXITED_AT):
            if not os.path.lexists(f"/proc/{tid}"):
                self._record_exit(tid)
        rest = max(_CHECK_SECONDS, (time.thread_time() - used) * _WORK_SHARE)
        self._check_at = time.monotonic() + rest

    def _record_exit(self, tid: int) -> None:
        """Write what the BPF program would have written at the exit (bpf/threads.h, thread_left)."""
        key, thread = ctypes.c_uint32(tid), ThreadT()
        if not tables.lookup(self._fds["threads"], key, thread) or thread.task.exited_at:
            return  # its exit has been recorded meanwhile
        task, newest = thread.task, thread.newest
        if thread.waits_for_exec:
            return
        self.count += 1
        task.exited_at = time.monotonic_ns()
        if newest.row.length:
            tables.inserter(self._fds["mappings"], ctypes.c_uint64(newest.key), newest.row)()
            newest.row.length = 0
        tables.update(self._fds["threads"], key, thread)
        if task.outstanding > 0 or task.brk_growth or task.last_sp:
            stack, task.stack = task.stack, 0
            tables.update(self._fds["exited"], TaskKeyT(started_at=task.started_at, tid=tid), task)
            task.stack = stack
        if not task.stack:
            tables.delete(self._fds["threads"], key)
