# SPDX-License-Identifier: Apache-2.0
"""Samples of the traced threads' page faults: which memory is touched first, and by which code.

A perf event counts the faults of one thread (``PERF_COUNT_SW_PAGE_FAULTS``, perf_event_open(2)) and, because
of its ``inherit``, of the threads that it creates; at the end of each period the kernel runs
``bpf/faults.c``. The file descriptors belong to this process: however it ends, the kernel closes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Optional

from ebpftrace.capture import tables
from ebpftrace.capture.btf import Btf
from ebpftrace.capture.installed import PERF_EVENT, SET_BPF
from ebpftrace.capture.layout import FAULT, FAULT_PAGES, ring_pages
from ebpftrace.capture.loader import Loading, install
from ebpftrace.capture.ringbuf import RingBuffer, record_size, records
from ebpftrace.capture.snapshot import decode_name
from ebpftrace.capture.stats import recursion_misses
from ebpftrace.capture.tracepoints import open_counter
from ebpftrace.errors import CannotTrace
from ebpftrace.model import ThreadId
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.tasks import listed_tasks
from ebpftrace.units import PAGE

_ENABLE = 0x2400  # PERF_EVENT_IOC_ENABLE, include/uapi/linux/perf_event.h
_COPIES_SHARE = 5
"""Of the copies of known stacks that calls may have, page faults may have one in so many: they cost more than
all else here, and only confirm what the first copies of a stack said."""
_MAX_PASSES = 50
"""Readings of the thread list until one finds no new thread."""
_SHARED = ("threads", "sites", "spaces", "space_configs", "copies", "given", "executing")
"""Tables of the ledger; the last is there only where the tracer is in a PID namespace of its own."""


class Fault(NamedTuple):
    """One page fault, which represents ``period`` of them."""

    at: int
    """ns of CLOCK_MONOTONIC."""
    address: int
    period: int
    """Faults of the thread since the last one that was sent."""
    site: int
    """Signature of the user stack, 0: none."""
    thread: ThreadId
    space: int
    name: str
    """Of the thread at that time."""


class FaultSampler:
    """The program at page faults; a context manager.  The ledger's programs must be loaded before it."""

    def __init__(self, loading: Loading, period: int) -> None:
        """Load the program.  ``period``: one of so many faults of a thread is sent.

        Raises CannotTrace, OSError (EMFILE).
        """
        ledger = loading.wait()
        self._period = period
        self._counters: dict[int, int] = {}
        """File descriptors of the perf events, by tid."""
        shared = {name: ledger.tables[name] for name in _SHARED if name in ledger.tables}
        parent = Btf.of_running_kernel().member_offset("perf_event", "parent")
        copies = max(1, loading.constants["COPIES_PER_SECOND"] // _COPIES_SHARE)
        constants = {**loading.constants, "EVENT_PARENT": parent, "COPIES_PER_SECOND": copies}
        self._installed = install("faults.c", constants, {}, {}, shared=shared)
        try:
            self._program = self._installed.load("page_fault", PERF_EVENT)
            self._skipped_before = recursion_misses([self._program])
            size = ring_pages(FAULT_PAGES, PAGE) * PAGE
            self._buffer = RingBuffer(self._installed.tables["faults"], size, most_bytes=4 * size)
        except BaseException:
            self._installed.close()
            raise

    def __enter__(self) -> FaultSampler:
        return self

    def __exit__(self, *_: object) -> None:
        while self._counters:
            _tid, fd = self._counters.popitem()
            os.close(fd)
        self._buffer.close()
        self._installed.close()

    def attach(self, pids: Iterable[int]) -> bool:
        """Count the faults of all threads of these processes, and of the threads that they create from now
        on.

        Returns False if threads were created faster than they could be listed, so that some may be missing.
        Raises CannotTrace, also if there are more threads than files may be opened.
        """
        for pid in pids:
            for _ in range(_MAX_PASSES):
                # A thread that is created meanwhile inherits an event, which may have no program yet.  So it
                # gets one of its own as well, and the program uses one of the two.  When a pass finds no new
                # thread, all threads had their events before that pass began.
                if not self._count_new(pid):
                    break
            else:
                return False
        return True

    def _count_new(self, pid: int) -> bool:
        try:
            new = [entry.tid for entry in listed_tasks(pid) if entry.tid not in self._counters]
        except ProcessGone:
            return False
        for tid in new:
            fd = self._count(tid)
            if fd is not None:
                self._counters[tid] = fd
        return any(tid in self._counters for tid in new)

    def _count(self, tid: int) -> Optional[int]:
        """Begin to count the faults of a thread; None if it has exited."""
        try:
            fd = open_counter(tid, self._period)
        except ProcessLookupError:
            return None
        except OSError as error:
            raise _refused(error, len(self._counters)) from None
        try:
            fcntl.ioctl(fd, SET_BPF, self._program)
            fcntl.ioctl(fd, _ENABLE)
        except OSError as error:
            os.close(fd)
            raise _refused(error, len(self._counters)) from None
        return fd

    def poll(self) -> Iterator[Fault]:
        """Yield the faults that have come; does not wait."""
        self._buffer.drain_all()
        for piece in self._buffer.take():
            for record in records(piece):
                at, address, period, site, started_at, tid, space, name = FAULT.unpack(record)
                text = decode_name(name.partition(b"\0")[0])
                yield Fault(at, address, period, site, ThreadId(tid, started_at), space, text)

    @property
    def lost(self) -> int:
        """Number of samples that were lost; each represents a period of faults."""
        full = tables.per_cpu_sum(self._installed.tables["lost_faults"], 0)
        dropped = self._buffer.dropped // record_size(FAULT.size)
        return full + dropped + recursion_misses([self._program]) - self._skipped_before


def _refused(error: OSError, counted: int) -> CannotTrace:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CannotTrace(
            f"page faults can't be counted: each thread takes a file, and only {counted} could be opened",
            "raise the limit of open files (ulimit -Hn), or use --no-rss",
        )
    return CannotTrace(
        f"page faults can't be counted: the kernel refuses perf events of threads ({error.strerror})",
        "use --no-rss; in a container, allow perf_event_open (CAP_PERFMON or CAP_SYS_ADMIN, seccomp)",
    )
