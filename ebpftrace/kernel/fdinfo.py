# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of a BPF program in ``/proc/self/fdinfo/FD``.

kernel/bpf/syscall.c: ``bpf_prog_show_fdinfo``.
"""

from __future__ import annotations

from pathlib import Path


def program_figure(fd: int, name: str) -> int:
    """Return a figure by its name; 0 where this kernel does not have it."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value)
    return 0
