# SPDX-License-Identifier: Apache-2.0
"""Whoever else watches this host sees what it saw before, while we trace."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from pathlib import Path

import pytest
from harness import Target, traced

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_TYPE_TRACEPOINT = 2
_CALLS = 100


class _Attributes(ctypes.Structure):
    """``struct perf_event_attr`` in its first size (include/uapi/linux/perf_event.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 6),
    )


def counter(tracepoint: str) -> int:
    """A descriptor that counts how often this thread passes a tracepoint, as perf stat does."""
    number = int(Path("/sys/kernel/tracing/events", tracepoint, "id").read_text())
    attributes = _Attributes(_TYPE_TRACEPOINT, ctypes.sizeof(_Attributes), number)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_PERF_EVENT_OPEN[platform.machine()], ctypes.byref(attributes), 0, -1, -1, 0))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.mark.parametrize("tracepoint", ["syscalls/sys_exit_mmap", "syscalls/sys_enter_munmap"])
def test_perf_counts_all_calls_while_we_trace(tracepoint: str) -> None:
    with Target("flood", 100, 0) as target, traced(target) as tracer:
        fd = counter(tracepoint)
        for _ in range(_CALLS):
            mmap.mmap(-1, mmap.PAGESIZE).close()
        counted = int.from_bytes(os.read(fd, 8), "little")
        os.close(fd)
        tracer.interrupt()
    assert counted >= _CALLS
