# SPDX-License-Identifier: Apache-2.0
"""The threads that an address space has when the tracer comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ebpftrace.kernel.registration import Registered, register
from ebpftrace.kernel.tracer import Tracer
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.sharing import Sharers, same_address_space
from ebpftrace.process.tasks import Listed, Task, listed_tasks


def register_threads(
    pid: int, space: int, tracer: Tracer, met: Mapping[Listed, Task]
) -> tuple[Registered, list[str]]:
    """Add all tasks of the address space of ``pid``, also those of other thread groups.

    ``met`` as for ``register``.  Returns notes on what may be missing, too.  Raises CannotTrace, ProcessGone.
    """
    looks: list[Sharers] = []

    def find() -> list[Listed]:
        looks.append(same_address_space(pid))
        return [one for tgid in looks[-1].tgids for one in _tasks_of(tgid)]

    def add(tasks: Sequence[Task]) -> list[Task]:
        return tracer.add_threads(space, tasks)

    notes = []
    registered = register(find, tracer.known_threads, add, tracer.forget_thread, met)
    if not registered.complete:
        notes.append("threads were created faster than they could be listed; some may be missing")
    if looks[-1].unchecked > 1:  # init alone is often out of bounds, and shares with nobody
        notes.append(f"{looks[-1].unchecked} processes could not be compared ({looks[-1].why})")
    return registered, notes


def _tasks_of(tgid: int) -> list[Listed]:
    try:
        return listed_tasks(tgid)
    except ProcessGone:
        return []
