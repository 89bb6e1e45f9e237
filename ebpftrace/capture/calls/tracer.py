# SPDX-License-Identifier: Apache-2.0
"""Python's interface to the BPF programs of the call trace: attach to the chosen calls, add tasks, read."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ebpftrace.capture import tables
from ebpftrace.capture.calls.layout import RECORD_PAGES, Filters, LostT, TotalT, TracedT, definitions, numbers
from ebpftrace.capture.calls.records import Decoder, Recorded
from ebpftrace.capture.layout import PythonT, ring_pages
from ebpftrace.capture.loader import install, this_machine
from ebpftrace.capture.ringbuf import RingBuffer, records
from ebpftrace.capture.stats import recursion_misses
from ebpftrace.errors import CannotTrace
from ebpftrace.own_process import raise_file_limit
from ebpftrace.procfs.tasks import Task
from ebpftrace.strace.selection import NEVER_RETURN
from ebpftrace.strace.summary import Total


class Lost(NamedTuple):
    """Numbers of what could not be recorded since the trace began."""

    calls: int
    stacks: int
    threads: int
    """Tasks that did not fit into the table: none of their calls is known."""


class CallTracer:
    """The attached programs, which send the calls of some tasks; a context manager.

    Only ``poll`` drains the ring buffer: if that is too slow the buffer fills up, and the BPF programs count
    the lost calls.
    """

    def __init__(self, filters: Filters) -> None:
        """Load and attach.  Raises CannotTrace, OSError (EMFILE)."""
        raise_file_limit()
        machine, preallocated = this_machine()
        constants = definitions(machine, filters, preallocated)
        mirrored = {"threads": TracedT, "losses": LostT, "pythons": PythonT}
        self._installed = install("trace.c", constants, mirrored, {})
        self._decoder = Decoder()
        try:
            self._attach(filters)
            self._fds = {
                name: self._installed.tables[name] for name in ("threads", "losses", "totals", "pythons")
            }
            self._programs = list(self._installed.programs.values())
            self._skipped_before = recursion_misses(self._programs)
            size = ring_pages(RECORD_PAGES, machine.page) * machine.page
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

        From here on every task that one of them creates is traced from its start.
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

    def python_found(self, image: int, places: Sequence[int]) -> None:
        """Record Python frames of the process that executed a program, and of those that it forks.

        ``places`` are the fields of ``PythonT``.
        """
        tables.update(self._fds["pythons"], ctypes.c_uint32(image), PythonT(*places))

    def python_gone(self, image: int) -> None:
        """Record no Python frames of this process any more."""
        tables.delete(self._fds["pythons"], ctypes.c_uint32(image))

    def known_threads(self) -> set[int]:
        """Return the tids of all traced tasks."""
        return tables.u32_keys(self._fds["threads"], TracedT)

    def forget_thread(self, task: Task) -> None:
        """Drop a task that exited before it was added, so that its exit is not seen any more."""
        tables.delete(self._fds["threads"], ctypes.c_uint32(task.id.tid))

    def has_threads(self) -> bool:
        """Whether any traced task is left."""
        return any(True for _ in tables.entries(self._fds["threads"], ctypes.c_uint32, TracedT))

    def poll(self) -> tuple[list[Recorded], float]:
        """Return the new records, nearly ordered by time, and the share of the buffer that they filled."""
        share = self._buffer.drain()
        return [
            event for piece in self._buffer.take() for event in self._decoder.events(records(piece))
        ], share

    def lost(self) -> Lost:
        """Return what has been lost so far, also after the last poll."""
        found = LostT()
        tables.lookup(self._fds["losses"], ctypes.c_uint32(0), found)
        return Lost(found.calls, found.stacks, found.threads)

    def skipped(self) -> int:
        """Return how many runs of the programs the kernel skipped; it is not known for which calls."""
        return recursion_misses(self._programs) - self._skipped_before

    def totals(self) -> list[Total]:
        """Return the summary, if ``Filters.counted``."""
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
        """Attach to the tracepoints of the chosen calls only: each slows its callers down."""
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
