# SPDX-License-Identifier: Apache-2.0
"""The call trace in the kernel as Python sees it: attach to the chosen calls, name tasks, read, detach."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel import tables
from ebpftrace.kernel.calls.layout import RECORD_PAGES, Filters, LostT, TotalT, TracedT, definitions, numbers
from ebpftrace.kernel.calls.records import Decoder, Recorded
from ebpftrace.kernel.descriptors import make_room
from ebpftrace.kernel.loader import install, this_machine
from ebpftrace.kernel.losses import skipped_runs
from ebpftrace.kernel.ringbuf import RingBuffer, records
from ebpftrace.process.tasks import Task
from ebpftrace.trace.selection import NEVER_RETURN
from ebpftrace.trace.summary import Total


class Lost(NamedTuple):
    """What could not be recorded since the trace began."""

    calls: int
    stacks: int
    threads: int
    """Tasks that the table had no room for: none of their calls is known."""


class CallTracer:
    """Our programs in the kernel, sending the calls of some tasks; a context manager.

    Nobody drains the ring buffer but ``poll``: when we are too slow it fills up, and the kernel
    side counts what is lost, and where.
    """

    def __init__(self, filters: Filters) -> None:
        """Load and attach.  Raises CannotTrace, OSError (EMFILE)."""
        make_room()
        machine, preallocated = this_machine()
        constants = definitions(machine, filters, preallocated)
        mirrored = {"threads": TracedT, "losses": LostT}
        self._installed = install("trace.c", constants, mirrored, {})
        self._decoder = Decoder()
        try:
            self._attach(filters)
            self._fds = {name: self._installed.tables[name] for name in ("threads", "losses", "totals")}
            self._programs = list(self._installed.programs.values())
            self._skipped_before = skipped_runs(self._programs)
            size = RECORD_PAGES * machine.page
            self._buffer = RingBuffer(self._installed.tables["records"], size, most_bytes=size)
        except BaseException:
            self._installed.close()
            raise

    def __enter__(self) -> CallTracer:
        return self

    def __exit__(self, *_: object) -> None:
        self._buffer.close()
        self._installed.close()

    def add_command(self, pid: int) -> None:
        """Trace process ``pid`` from the moment it executes a program."""
        record = TracedT(tgid=pid, image=pid, waits_for_exec=1)
        tables.update(self._fds["threads"], ctypes.c_uint32(pid), record)

    def add_threads(self, tasks: Iterable[Task]) -> Sequence[Task]:
        """Trace these tasks; return those that were not traced before.

        From here on every task that one of them creates is traced from its birth.
        """
        new = []
        record, tid = TracedT(), ctypes.c_uint32()
        insert = tables.inserter(self._fds["threads"], tid, record)
        for task in tasks:
            tid.value = task.id.tid
            record.tgid = record.image = task.tgid
            if insert():
                new.append(task)
        return new

    def known_threads(self) -> set[int]:
        """Tids of all that are traced now."""
        return tables.u32_keys(self._fds["threads"], TracedT)

    def forget_thread(self, task: Task) -> None:
        """Drop a task that exited before it was added: nobody will tell us of its end."""
        tables.delete(self._fds["threads"], ctypes.c_uint32(task.id.tid))

    def has_threads(self) -> bool:
        """Whether any traced task is left."""
        return any(True for _ in tables.entries(self._fds["threads"], ctypes.c_uint32, TracedT))

    def poll(self) -> tuple[list[Recorded], float]:
        """What has come, nearly in the order of time, and which share of the buffer it had filled."""
        share = self._buffer.drain()
        return [
            event for piece in self._buffer.take() for event in self._decoder.events(records(piece))
        ], share

    def lost(self) -> Lost:
        """What has been lost; the calls that a poll told of are in it, and those after it."""
        found = LostT()
        tables.lookup(self._fds["losses"], ctypes.c_uint32(0), found)
        return Lost(found.calls, found.stacks, found.threads)

    def skipped(self) -> int:
        """Runs of our programs that the kernel skipped: nobody knows where, or whether they mattered."""
        return skipped_runs(self._programs) - self._skipped_before

    def totals(self) -> list[Total]:
        """The summary, where one is kept."""
        found = []
        for name, number in numbers().items():
            each_cpu = tables.of_each_cpu(self._fds["totals"], number, TotalT)
            found.append(
                Total(
                    name,
                    sum(total.calls for total in each_cpu),
                    sum(total.errors for total in each_cpu),
                    sum(total.ns for total in each_cpu),
                )
            )
        return found

    def _attach(self, filters: Filters) -> None:
        """Attach to the tracepoints of the chosen calls, and to no others: each costs its callers time."""
        if "execve" in filters.calls:
            self._attach_to("sys_enter_execve", "executes")
        for name in sorted(filters.calls & set(numbers())):
            if name in NEVER_RETURN:
                if filters.printed and not filters.only_failed and not filters.only_successful:
                    self._attach_to(f"sys_enter_{name}", "leaves")
                continue
            self._attach_to(f"sys_exit_{name}", "returned")
            if filters.timed and name != "execve":
                self._attach_to(f"sys_enter_{name}", "entered")

    def _attach_to(self, tracepoint: str, function: str) -> None:
        try:
            self._installed.attach(f"syscalls:{tracepoint}", function)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            raise CannotTrace(
                f"cannot attach to {tracepoint} ({error.strerror})", "ebpftrace doctor"
            ) from None
