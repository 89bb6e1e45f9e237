"""The threads that an address space has when the tracer comes."""

from __future__ import annotations

from ebpftrace.kernel.registration import register
from ebpftrace.kernel.tracer import Tracer
from ebpftrace.process.procfs import ProcessGone, task_ids
from ebpftrace.process.sharing import Sharers, same_address_space


def register_threads(pid: int, space: int, tracer: Tracer) -> list[str]:
    """Add all tasks of the address space of ``pid``, also those of other thread groups.

    Returns notes on what may be missing.  Raises CannotTrace, ProcessGone.
    """
    looks: list[Sharers] = []

    def find() -> dict[int, int]:
        looks.append(same_address_space(pid))
        return {tid: tgid for tgid in looks[-1].tgids for tid in _tids_of(tgid)}

    notes = []
    if not register(
        find, tracer.known_threads, lambda tasks: tracer.add_threads(space, tasks), tracer.forget_thread
    ):
        notes.append("threads were created faster than they could be listed; some may be missing")
    if looks[-1].unchecked > 1:  # init alone is often out of bounds, and shares with nobody
        notes.append(f"{looks[-1].unchecked} processes could not be compared ({looks[-1].why})")
    return notes


def _tids_of(tgid: int) -> list[int]:
    try:
        return task_ids(tgid)
    except ProcessGone:
        return []
