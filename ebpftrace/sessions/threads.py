# SPDX-License-Identifier: Apache-2.0
"""Register the threads that an address space has when the tracer attaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ebpftrace.capture.registration import Registered, register
from ebpftrace.capture.tracer import Tracer
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.sharing import Sharers, same_address_space
from ebpftrace.procfs.tasks import Listed, Task, listed_tasks


def register_threads(
    pid: int, space: int, tracer: Tracer, preloaded: Mapping[Listed, Task]
) -> tuple[Registered, list[str]]:
    """Add all tasks of the address space of ``pid``, also those of other thread groups.

    ``preloaded`` as for ``register``.  Also returns notes on what may be missing.  Raises CannotTrace,
    ProcessGone.
    """
    readings: list[Sharers] = []

    def find() -> list[Listed]:
        readings.append(same_address_space(pid))
        return [task for tgid in readings[-1].tgids for task in _tasks_of(tgid)]

    def add(tasks: Sequence[Task]) -> list[Task]:
        return tracer.add_threads(space, tasks)

    notes = []
    registered = register(find, tracer.known_threads, add, tracer.forget_thread, preloaded)
    if not registered.complete:
        notes.append("threads were created faster than they could be listed; some may be missing")
    if readings[-1].unchecked > 1:  # init alone can often not be compared, and shares with no process
        notes.append(f"{readings[-1].unchecked} processes could not be compared ({readings[-1].why})")
    return registered, notes


def _tasks_of(tgid: int) -> list[Listed]:
    try:
        return listed_tasks(tgid)
    except ProcessGone:
        return []
