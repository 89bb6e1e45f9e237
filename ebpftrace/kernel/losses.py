# SPDX-License-Identifier: Apache-2.0
"""Losses that no counter of a BPF program can see: runs that the kernel skipped.

On preemptible kernels the kernel skips a program that is already running on the same CPU; the
program then never ran and counts nothing.  ``recursion_misses`` does (Linux 5.12 and later).
"""

from __future__ import annotations

from collections.abc import Iterable

from ebpftrace.kernel.fdinfo import program_figure


def skipped_runs(program_fds: Iterable[int]) -> int:
    """Return how many runs of these programs the kernel has skipped since they were loaded."""
    return sum(program_figure(fd, "recursion_misses") for fd in program_fds)
