"""Losses that no counter of a BPF program can see: runs that the kernel skipped.

On preemptible kernels the kernel skips a program that is already running on the same CPU; the
program then never ran and counts nothing.  ``recursion_misses`` of ``/proc/self/fdinfo/FD`` does
(kernel/bpf/syscall.c: ``bpf_prog_show_fdinfo``; Linux 5.12 and later).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def skipped_runs(program_fds: Iterable[int]) -> int:
    """Return how many runs of these programs the kernel has skipped since they were loaded."""
    return sum(_field(fd, "recursion_misses") for fd in program_fds)


def _field(fd: int, name: str) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    return 0
