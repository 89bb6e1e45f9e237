"""The protections and flags of mmap(2) that rules ask for.

Values: ``include/uapi/asm-generic/mman-common.h`` (x86-64, arm64).
"""

from __future__ import annotations

PROT_NONE = 0x0
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000
MAP_STACK = 0x20000
MAP_HUGETLB = 0x40000

PRIVATE_ANONYMOUS = MAP_PRIVATE | MAP_ANONYMOUS


def has_all(flags: int, wanted: int) -> bool:
    """Whether every bit of ``wanted`` is set in ``flags``."""
    return flags & wanted == wanted
