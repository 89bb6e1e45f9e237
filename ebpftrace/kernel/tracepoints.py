# SPDX-License-Identifier: Apache-2.0
"""A perf event of a tracepoint, for a program to be attached by."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from ebpftrace.errors import CannotTrace
from ebpftrace.syscalls import numbers

TRACEFS = Path("/sys/kernel/tracing")
DEBUGFS_TRACEFS = Path("/sys/kernel/debug/tracing")
_TYPE_TRACEPOINT = 2  # enum perf_type_id, include/uapi/linux/perf_event.h
_SAMPLE_RAW = 1 << 10
_DISABLED = 1
_FLAG_FD_CLOEXEC = 8
_ANY_TASK, _FIRST_CPU, _NO_GROUP = -1, 0, -1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def has_tracepoint(category: str, name: str) -> bool:
    """Whether this kernel has a tracepoint, as far as tracefs is mounted and can be read."""
    return any(
        (tracefs / "events" / category / name / "id").exists() for tracefs in (TRACEFS, DEBUGFS_TRACEFS)
    )


class _Attributes(ctypes.Structure):
    """``struct perf_event_attr`` up to what the first version had (PERF_ATTR_SIZE_VER0, 64 bytes)."""

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
    fd = int(
        _libc.syscall(
            ctypes.c_long(numbers()["perf_event_open"]), ctypes.byref(attributes), ctypes.c_int(_ANY_TASK),
            ctypes.c_int(_FIRST_CPU), ctypes.c_int(_NO_GROUP), ctypes.c_ulong(_FLAG_FD_CLOEXEC),
        )
    )  # fmt: skip
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), tracepoint)
    return fd


def _number(tracepoint: str) -> int:
    category, _, event = tracepoint.partition(":")
    for tracefs in (TRACEFS, DEBUGFS_TRACEFS):
        with suppress(OSError, ValueError):
            return int((tracefs / "events" / category / event / "id").read_text())
    raise CannotTrace(
        f"this kernel shows no tracepoint {tracepoint}", "ebpftrace doctor says what is missing"
    )
