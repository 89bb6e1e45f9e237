"""What live threads wait for: the futexes they sleep on, among them those of pthread_join."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import read_small, task_ids
from ebpftrace.syscalls import numbers


def read_futex_waits(tgids: Iterable[int]) -> frozenset[int]:
    """Addresses of the futexes that threads of these processes are asleep on.

    From ``/proc/PID/task/TID/syscall`` (proc(5)), which stops nobody: the number of the call and its
    arguments, of which a futex's address is the first.  Threads that may not be looked at are left out.
    """
    number = str(numbers().get("futex", "")).encode()
    waits = set()
    for tgid in tgids:
        with suppress(CannotTrace):
            for tid in task_ids(tgid):
                with suppress(OSError):
                    fields = read_small(f"/proc/{tgid}/task/{tid}/syscall").split()
                    if len(fields) > 3 and fields[0] == number:
                        waits.add(int(fields[1], 16))
    return frozenset(waits)
