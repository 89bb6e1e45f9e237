# SPDX-License-Identifier: Apache-2.0
"""What our programs cost the host: their run time, measured by the kernel while somebody asks for it.

Measuring costs two clock readings a run (kernel/bpf/trampoline.c, include/linux/filter.h:
``__bpf_prog_run``), and concerns every BPF program of the host: it is off unless the user wants it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel.fdinfo import program_figure
from ebpftrace.kernel.tables import bpf

_ENABLE_STATS = 32
_STATS_RUN_TIME = 0


class _StatsAttributes(ctypes.Structure):
    """The BPF_ENABLE_STATS part of ``union bpf_attr`` (include/uapi/linux/bpf.h)."""

    _fields_ = (("type", ctypes.c_uint32),)


@dataclass(frozen=True)
class RunTime:
    """What a program did since it was loaded, as far as the kernel measured it."""

    nanoseconds: int
    runs: int


def run_time(program_fd: int) -> RunTime:
    """What one program did so far."""
    return RunTime(program_figure(program_fd, "run_time_ns"), program_figure(program_fd, "run_cnt"))


@contextlib.contextmanager
def measured_runs() -> Iterator[None]:
    """Have the kernel measure all BPF programs; it stops with us, however we end.

    Raises CannotTrace where it refuses: BPF_ENABLE_STATS came with Linux 5.8 and wants CAP_SYS_ADMIN.
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
