# SPDX-License-Identifier: Apache-2.0
"""Constants of the kernel's system call interface: numbers by machine, and limits."""

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
        "shmat": 30,
        "io_setup": 206,
        "madvise": 28,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "exit": 60,
        "futex": 202,
        "exit_group": 231,
        "perf_event_open": 298,
        "kcmp": 312,
        "bpf": 321,
        "clone3": 435,
    },
    "aarch64": {
        "io_setup": 0,
        "exit": 93,
        "exit_group": 94,
        "futex": 98,
        "shmat": 196,
        "brk": 214,
        "munmap": 215,
        "mremap": 216,
        "clone": 220,
        "execve": 221,
        "mmap": 222,
        "mprotect": 226,
        "madvise": 233,
        "perf_event_open": 241,
        "kcmp": 272,
        "bpf": 280,
        "clone3": 435,
    },
}
"""By ``platform.machine()``: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h."""

WAITS: Mapping[str, Mapping[int, str]] = {
    "x86_64": {
        0: "read", 1: "write", 7: "poll", 23: "select", 34: "pause", 35: "nanosleep", 42: "connect",
        43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 72: "fcntl",
        73: "flock", 74: "fsync", 128: "rt_sigtimedwait", 130: "rt_sigsuspend",
        202: "futex", 208: "io_getevents", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid",
        270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 288: "accept4", 426: "io_uring_enter",
        441: "epoll_pwait2",
    },
    "aarch64": {
        22: "epoll_pwait", 25: "fcntl", 32: "flock", 63: "read", 64: "write", 72: "pselect6", 73: "ppoll",
        82: "fsync", 95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 4: "io_getevents",
        133: "rt_sigsuspend", 137: "rt_sigtimedwait", 202: "accept", 203: "connect", 206: "sendto",
        207: "recvfrom", 211: "sendmsg", 212: "recvmsg", 242: "accept4", 260: "wait4", 426: "io_uring_enter",
        441: "epoll_pwait2",
    },
}  # fmt: skip
"""System calls in which threads wait, by ``platform.machine()`` and number."""

MAX_ERRNO = 4095
"""The largest errno; a failed call returns -errno (include/linux/err.h)."""

CLONE_ARGS_SIZE_VER0 = 64
"""Bytes of the smallest ``struct clone_args`` that clone3 accepts (include/uapi/linux/sched.h)."""


def numbers() -> Mapping[str, int]:
    """The numbers of this machine's calls by name; empty on an unknown machine."""
    return NUMBERS.get(platform.machine(), {})


def wait_name(number: int) -> str:
    """The name of a call in which threads wait, else ``system call 999``."""
    return WAITS.get(platform.machine(), {}).get(number, f"system call {number}")
