"""What the kernel's system call interface fixes: numbers by machine, and limits."""

from __future__ import annotations

import platform
from collections.abc import Mapping

NUMBERS: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        "mmap": 9,
        "mprotect": 10,
        "munmap": 11,
        "brk": 12,
        "mremap": 25,
        "madvise": 28,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "exit": 60,
        "futex": 202,
        "exit_group": 231,
        "kcmp": 312,
        "bpf": 321,
        "clone3": 435,
    },
    "aarch64": {
        "exit": 93,
        "exit_group": 94,
        "futex": 98,
        "brk": 214,
        "munmap": 215,
        "mremap": 216,
        "clone": 220,
        "execve": 221,
        "mmap": 222,
        "mprotect": 226,
        "madvise": 233,
        "kcmp": 272,
        "bpf": 280,
        "clone3": 435,
    },
}
"""By ``platform.machine()``: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h."""

MAX_ERRNO = 4095
"""A failed call returns -errno, down to this one's (include/linux/err.h)."""

CLONE_ARGS_SIZE_VER0 = 64
"""Bytes: the least that clone3 takes (include/uapi/linux/sched.h)."""


def numbers() -> Mapping[str, int]:
    """The numbers of this machine's calls by name; empty on machines that we do not know."""
    return NUMBERS.get(platform.machine(), {})
