# SPDX-License-Identifier: Apache-2.0
"""The kernel's statistics of our BPF programs: runs that it skipped, and run time.

On preemptible kernels the kernel skips a program that is already running on the same CPU.  The program can't
count that itself; ``recursion_misses`` does: of programs at functions (fentry) since Linux 5.12
(kernel/bpf/trampoline.c), of programs at tracepoints only since 6.7 (kernel/trace/bpf_trace.c,
``trace_call_bpf``).  Before 6.7, 0 proves nothing about those.

To measure the run time costs two clock readings a run (kernel/bpf/trampoline.c, include/linux/filter.h:
``__bpf_prog_run``) and applies to every BPF program of the host, so it is off unless the user asks for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ebpftrace.capture.tables import bpf
from ebpftrace.errors import CannotTrace

_ENABLE_STATS = 32
_STATS_RUN_TIME = 0


class _StatsAttributes(ctypes.Structure):
    """The BPF_ENABLE_STATS part of ``union bpf_attr`` (include/uapi/linux/bpf.h)."""

    _fields_ = (("type", ctypes.c_uint32),)


class RunTime(NamedTuple):
    """The measured runs of a program since it was loaded."""

    nanoseconds: int
    runs: int


def recursion_misses(program_fds: Iterable[int]) -> int:
    """Return how many runs of these programs the kernel has skipped since they were loaded."""
    return sum(_fdinfo_number(fd, "recursion_misses") for fd in program_fds)


def run_time(program_fd: int) -> RunTime:
    """Return the measured run time of one program so far."""
    return RunTime(_fdinfo_number(program_fd, "run_time_ns"), _fdinfo_number(program_fd, "run_cnt"))


@contextlib.contextmanager
def measured_runs() -> Iterator[None]:
    """Let the kernel measure all BPF programs until the end of this context or process.

    Raises CannotTrace where it refuses: BPF_ENABLE_STATS came with Linux 5.8 and needs CAP_SYS_ADMIN.
    """
    try:
        fd = bpf(_ENABLE_STATS, _StatsAttributes(type=_STATS_RUN_TIME))
    except OSError as error:
        raise CannotTrace(
            f"the kernel does not measure BPF programs for us ({error.strerror})",
            "run as root on Linux 5.8 or later, or leave out --cost",
        ) from None
    try:
        yield
    finally:
        os.close(fd)


def _fdinfo_number(fd: int, name: str) -> int:
    """Return a number from ``/proc/self/fdinfo/FD`` of a program; 0 where this kernel does not have it.

    kernel/bpf/syscall.c: ``bpf_prog_show_fdinfo``.
    """
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    return 0
