# SPDX-License-Identifier: Apache-2.0
"""Threads that are not running right now: where their stacks are, and what they wait in."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import read_small, task_ids


class Sleeper(NamedTuple):
    """A thread that is not running."""

    stack_pointer: int
    call: Optional[int]
    """Number of the system call it is in; None outside one, as after a page fault."""


def read_sleepers(tgids: Iterable[int]) -> dict[int, Sleeper]:
    """The threads of these processes that are not running, by tid.

    From ``/proc/PID/task/TID/syscall`` (proc(5)), which stops nobody.  A thread that runs, has
    exited or may not be looked at is left out; so is all, where the kernel lacks that file.
    """
    sleepers = {}
    for tgid in tgids:
        with suppress(CannotTrace):
            for tid in task_ids(tgid):
                with suppress(OSError):
                    # In a call: its number, six arguments, stack pointer, program counter; outside one
                    # "-1 SP PC"; "running" while it runs.
                    fields = read_small(f"/proc/{tgid}/task/{tid}/syscall").split()
                    if len(fields) >= 3:
                        number = int(fields[0])
                        sleepers[tid] = Sleeper(int(fields[-2], 16), None if number < 0 else number)
    return sleepers
