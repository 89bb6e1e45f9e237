"""Where the stacks of live threads are: their stack pointers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import read_small, task_ids

_FIELDS = 9
"""Of a thread in a system call: its number, six arguments, stack pointer, program counter."""


def read_stack_pointers(tgids: Iterable[int]) -> dict[int, int]:
    """Tid -> stack pointer of the threads of these processes that are not running right now.

    From ``/proc/PID/task/TID/syscall`` (proc(5)), which stops nobody.  A thread that runs, has
    exited or may not be looked at is left out; so is all, where the kernel lacks that file.
    """
    pointers = {}
    for tgid in tgids:
        with suppress(CannotTrace):
            for tid in task_ids(tgid):
                with suppress(OSError):
                    fields = read_small(f"/proc/{tgid}/task/{tid}/syscall").split()
                    if len(fields) >= 3:  # "-1 SP PC" outside a call, "running" while it runs
                        pointers[tid] = int(fields[-2], 16)
    return pointers
