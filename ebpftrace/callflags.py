# SPDX-License-Identifier: Apache-2.0
"""Protections and flags of mmap, mremap and clone, and signals: values, and names exactly as strace's.

The values are the kernel's user-space interface on x86-64 and arm64:
``include/uapi/asm-generic/mman-common.h``, ``asm-generic/mman.h``, ``linux/mman.h``,
``asm-generic/hugetlb_encode.h``, ``arch/x86/include/uapi/asm/mman.h`` (MAP_32BIT) and
``linux/sched.h``; mmap(2), clone(2).  The order of the names is strace's
(``src/xlat/mmap_flags.in``, ``src/mem.c``; ``src/clone.c``), seen with strace 6.1.
"""

from __future__ import annotations

PROT_NONE = 0x0

MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x0100
MAP_NORESERVE = 0x4000
MAP_STACK = 0x20000
MAP_HUGETLB = 0x40000
MREMAP_FIXED = 0x2
PRIVATE_ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS

CLONE_PIDFD = 0x1000
CLONE_SETTLS = 0x80000
CLONE_PARENT_SETTID = 0x100000
CLONE_CHILD_CLEARTID = 0x200000
CLONE_CHILD_SETTID = 0x1000000
CLONE_INTO_CGROUP = 0x200000000

_PROT = (
    (0x1, "PROT_READ"),
    (0x2, "PROT_WRITE"),
    (0x4, "PROT_EXEC"),
    (0x8, "PROT_SEM"),
    (0x01000000, "PROT_GROWSDOWN"),
    (0x02000000, "PROT_GROWSUP"),
)

_MAP_TYPE_MASK = 0x0F
_MAP_TYPES = {
    0x0: "MAP_FILE",
    MAP_SHARED: "MAP_SHARED",
    MAP_PRIVATE: "MAP_PRIVATE",
    0x3: "MAP_SHARED_VALIDATE",
    0x8: "MAP_DROPPABLE",
}
_MAP = (
    (MAP_FIXED, "MAP_FIXED"),
    (MAP_ANONYMOUS, "MAP_ANONYMOUS"),
    (0x40, "MAP_32BIT"),
    (MAP_NORESERVE, "MAP_NORESERVE"),
    (0x8000, "MAP_POPULATE"),
    (0x10000, "MAP_NONBLOCK"),
    (MAP_GROWSDOWN, "MAP_GROWSDOWN"),
    (0x0800, "MAP_DENYWRITE"),
    (0x1000, "MAP_EXECUTABLE"),
    (0x2000, "MAP_LOCKED"),
    (MAP_STACK, "MAP_STACK"),
    (MAP_HUGETLB, "MAP_HUGETLB"),
    (0x80000, "MAP_SYNC"),
    (0x100000, "MAP_FIXED_NOREPLACE"),
)
_MAP_HUGE_SHIFT = 26
_MAP_HUGE_MASK = 0x3F

_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_MREMAP = ((_MREMAP_MAYMOVE, "MREMAP_MAYMOVE"), (_MREMAP_FIXED, "MREMAP_FIXED"), (4, "MREMAP_DONTUNMAP"))

_EXIT_SIGNAL_MASK = 0xFF
_SIGNALS = (
    *("0", "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL"),
    *("SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT"),
    *("SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU", "SIGXFSZ", "SIGVTALRM", "SIGPROF"),
    *("SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS", "SIGRTMIN"),
)
"""Names by number (``include/uapi/asm-generic/signal.h``, signal(7)); Python's depend on its version."""
_LAST_SIGNAL = 64
_CLONE = (
    (0x00000100, "CLONE_VM"),
    (0x00000200, "CLONE_FS"),
    (0x00000400, "CLONE_FILES"),
    (0x00000800, "CLONE_SIGHAND"),
    (CLONE_PIDFD, "CLONE_PIDFD"),
    (0x00002000, "CLONE_PTRACE"),
    (0x00004000, "CLONE_VFORK"),
    (0x00008000, "CLONE_PARENT"),
    (0x00010000, "CLONE_THREAD"),
    (0x00020000, "CLONE_NEWNS"),
    (0x00040000, "CLONE_SYSVSEM"),
    (CLONE_SETTLS, "CLONE_SETTLS"),
    (CLONE_PARENT_SETTID, "CLONE_PARENT_SETTID"),
    (CLONE_CHILD_CLEARTID, "CLONE_CHILD_CLEARTID"),
    (0x00800000, "CLONE_UNTRACED"),
    (CLONE_CHILD_SETTID, "CLONE_CHILD_SETTID"),
    (0x02000000, "CLONE_NEWCGROUP"),
    (0x04000000, "CLONE_NEWUTS"),
    (0x08000000, "CLONE_NEWIPC"),
    (0x10000000, "CLONE_NEWUSER"),
    (0x20000000, "CLONE_NEWPID"),
    (0x40000000, "CLONE_NEWNET"),
    (0x80000000, "CLONE_IO"),
)
_CLONE3_ONLY = (
    (0x00000080, "CLONE_NEWTIME"),
    (0x100000000, "CLONE_CLEAR_SIGHAND"),
    (CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"),
)


def has_all(flags: int, wanted: int) -> bool:
    """Whether every bit of ``wanted`` is set in ``flags``."""
    return flags & wanted == wanted


def prot(value: int) -> str:
    """The protection of mmap(2) and mprotect(2), such as ``PROT_READ|PROT_WRITE``."""
    return _names(value, _PROT, "PROT_???") or "PROT_NONE"


def map_flags(value: int) -> str:
    """The flags of mmap(2), such as ``MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT``."""
    kind = value & _MAP_TYPE_MASK
    parts = [_MAP_TYPES.get(kind, f"{kind:#x} /* MAP_??? */")]
    huge = value >> _MAP_HUGE_SHIFT & _MAP_HUGE_MASK
    rest = _names(value & ~_MAP_TYPE_MASK & ~(_MAP_HUGE_MASK << _MAP_HUGE_SHIFT), _MAP)
    if rest:
        parts.append(rest)
    if huge:
        parts.append(f"{huge}<<MAP_HUGE_SHIFT")
    return "|".join(parts)


def mremap_flags(value: int) -> str:
    """The flags of mremap(2), such as ``MREMAP_MAYMOVE``."""
    return _names(value, _MREMAP, "MREMAP_???") or "0"


def names_new_address(mremap_flags_value: int) -> bool:
    """Whether strace shows the fifth argument of a call of mremap(2) with these flags."""
    return has_all(mremap_flags_value, _MREMAP_MAYMOVE | _MREMAP_FIXED)


def clone_flags(value: int) -> str:
    """The flags of clone(2) with the exit signal in their low byte, such as ``CLONE_VM|SIGCHLD``."""
    number = value & _EXIT_SIGNAL_MASK
    parts = [_names(value & ~_EXIT_SIGNAL_MASK, _CLONE, "CLONE_???")]
    if number:
        parts.append(signal_name(number))
    return "|".join(part for part in parts if part) or "0"


def clone3_flags(value: int) -> str:
    """The flags of clone3(2), which has the exit signal in another field."""
    return _names(value, _CLONE + _CLONE3_ONLY, "CLONE_???") or "0"


def signal_name(number: int) -> str:
    """A signal, such as ``SIGCHLD`` or ``SIGRT_1``; ``0`` for none, and the number if it is no signal."""
    if number < len(_SIGNALS):
        return _SIGNALS[number]
    # The kernel's SIGRTMIN, the last in the table: the C library takes two of them for itself.
    return f"SIGRT_{number - len(_SIGNALS) + 1}" if number <= _LAST_SIGNAL else str(number)


def _names(value: int, table: tuple[tuple[int, str], ...], nothing_known: str = "") -> str:
    names = []
    for bit, name in table:
        if value & bit:
            names.append(name)
            value &= ~bit
    if value:
        comment = f" /* {nothing_known} */" if nothing_known and not names else ""
        names.append(f"{value:#x}{comment}")
    return "|".join(names)
