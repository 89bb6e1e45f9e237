# SPDX-License-Identifier: Apache-2.0
"""Perf events to attach programs by: of a tracepoint, and of the page faults of a thread."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

from ebpftrace.errors import CannotTrace
from ebpftrace.libc import syscall
from ebpftrace.syscall_numbers import numbers

TRACEFS = Path("/sys/kernel/tracing")
DEBUGFS_TRACEFS = Path("/sys/kernel/debug/tracing")
# enum perf_type_id, enum perf_sw_ids, enum perf_event_sample_format: include/uapi/linux/perf_event.h
_TYPE_SOFTWARE, _TYPE_TRACEPOINT = 1, 2
_PAGE_FAULTS = 2
_SAMPLE_ADDRESS, _SAMPLE_RAW = 1 << 3, 1 << 10
_DISABLED, _INHERIT = 1, 1 << 1
"""Bits of struct perf_event_attr."""
_FLAG_FD_CLOEXEC = 8
_ANY_TASK, _ANY_CPU, _FIRST_CPU, _NO_GROUP = -1, -1, 0, -1


def has_tracepoint(category: str, name: str) -> bool:
    """Whether this kernel has a tracepoint, as far as tracefs is mounted and can be read."""
    return any(
        (tracefs / "events" / category / name / "id").exists() for tracefs in (TRACEFS, DEBUGFS_TRACEFS)
    )


class _Attributes(ctypes.Structure):
    """The first version of ``struct perf_event_attr`` (PERF_ATTR_SIZE_VER0, 64 bytes)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
    )


def open_event(tracepoint: str) -> int:
    """Return the file descriptor of a disabled perf event of a tracepoint, CATEGORY:EVENT.

    Raises CannotTrace where this kernel has no such tracepoint or refuses, OSError (EMFILE).
    """
    attributes = _Attributes(
        type=_TYPE_TRACEPOINT,
        size=ctypes.sizeof(_Attributes),
        config=_number(tracepoint),
        sample_period=1,
        sample_type=_SAMPLE_RAW,
        flags=_DISABLED,
        wakeup_events=1,
    )
    return _open(attributes, _ANY_TASK, _FIRST_CPU, tracepoint)


def open_counter(tid: int, period: int) -> int:
    """Return the file descriptor of a disabled perf event of page faults: of a thread and its children.

    It ends a period at each ``period`` faults.  Not a frequency: the kernel adapts to one too slowly for the
    bursts in which memory is filled (of 12,390 faults in 20 ms seven were sampled, which stood for 28,352).
    Raises OSError: ProcessLookupError where the thread has exited, EMFILE.
    """
    attributes = _Attributes(
        type=_TYPE_SOFTWARE,
        size=ctypes.sizeof(_Attributes),
        config=_PAGE_FAULTS,
        sample_period=period,
        # Not the period: then the kernel would run our program at each fault (kernel/events/core.c,
        # perf_swevent_event).
        sample_type=_SAMPLE_ADDRESS,
        flags=_DISABLED | _INHERIT,
    )
    return _open(attributes, tid, _ANY_CPU, "page-faults")


def _open(attributes: _Attributes, tid: int, cpu: int, what: str) -> int:
    number, address = numbers()["perf_event_open"], ctypes.byref(attributes)
    return syscall(number, address, tid, cpu, _NO_GROUP, _FLAG_FD_CLOEXEC, what=what)


def _number(tracepoint: str) -> int:
    category, _, event = tracepoint.partition(":")
    for tracefs in (TRACEFS, DEBUGFS_TRACEFS):
        with suppress(OSError, ValueError):
            return int((tracefs / "events" / category / event / "id").read_text())
    raise CannotTrace(
        f"this kernel shows no tracepoint {tracepoint}", "ebpftrace doctor says what is missing"
    )
