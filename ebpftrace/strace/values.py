# SPDX-License-Identifier: Apache-2.0
"""Formats values of arguments and results as strace does."""

from __future__ import annotations

import errno
import os
from functools import cache

from ebpftrace.strace.events import Text
from ebpftrace.syscall_numbers import MAX_ERRNO

_RESTARTS = {
    512: "ERESTARTSYS (To be restarted if SA_RESTART is set)",
    513: "ERESTARTNOINTR (To be restarted)",
    514: "ERESTARTNOHAND (To be restarted if no handler)",
    516: "ERESTART_RESTARTBLOCK (Interrupted by signal)",
}
"""After a signal the call is made again (include/linux/errno.h; texts as in strace's src/syscall.c)."""

_ESCAPES = {0x22: '\\"', 0x5C: "\\\\", 0x0C: "\\f", 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x0B: "\\v"}

# include/uapi/asm-generic/mman-common.h
_ADVICE = {
    0: "MADV_NORMAL",
    1: "MADV_RANDOM",
    2: "MADV_SEQUENTIAL",
    3: "MADV_WILLNEED",
    4: "MADV_DONTNEED",
    8: "MADV_FREE",
    9: "MADV_REMOVE",
    10: "MADV_DONTFORK",
    11: "MADV_DOFORK",
    12: "MADV_MERGEABLE",
    13: "MADV_UNMERGEABLE",
    14: "MADV_HUGEPAGE",
    15: "MADV_NOHUGEPAGE",
    16: "MADV_DONTDUMP",
    17: "MADV_DODUMP",
    18: "MADV_WIPEONFORK",
    19: "MADV_KEEPONFORK",
    20: "MADV_COLD",
    21: "MADV_PAGEOUT",
    22: "MADV_POPULATE_READ",
    23: "MADV_POPULATE_WRITE",
    24: "MADV_DONTNEED_LOCKED",
    25: "MADV_COLLAPSE",
    100: "MADV_HWPOISON",
    101: "MADV_SOFT_OFFLINE",
    102: "MADV_GUARD_INSTALL",
    103: "MADV_GUARD_REMOVE",
}


def address(value: int) -> str:
    """A pointer: ``NULL`` or ``0x7f8c0c6a5000``."""
    return f"0x{value:x}" if value else "NULL"


def hexadecimal(value: int) -> str:
    """A number as C's ``%#x`` prints it: ``0``, ``0x1000``."""
    return f"0x{value:x}" if value else "0"


def signed_32(value: int) -> int:
    """The low 32 bits of a register as a C ``int``."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def advice(value: int) -> str:
    """The advice of madvise(2)."""
    value &= 0xFFFFFFFF
    return _ADVICE.get(value) or f"{hexadecimal(value)} /* MADV_??? */"


def has_failed(returned: int) -> bool:
    """Whether a call that returned this has failed."""
    return -MAX_ERRNO <= returned < 0


@cache  # of MAX_ERRNO numbers
def error(number: int) -> str:
    """The result of a failed call: ``-1 EINVAL (Invalid argument)``."""
    if number in _RESTARTS:
        return f"? {_RESTARTS[number]}"
    name = errno.errorcode.get(number)
    # The C library and strace use the older names of these two.
    name = {"EDEADLOCK": "EDEADLK", "EWOULDBLOCK": "EAGAIN"}.get(name or "", name)
    return f"-1 {name} ({os.strerror(number)})" if name else f"-1 (errno {number})"


def text(value: Text) -> str:
    """A string in quotes with C's escapes, and dots if it was cut; its address if it could not be read."""
    if value.content is None:
        return address(value.pointer)
    return f'"{_quoted(value.content)}"' + ("" if value.is_whole else "...")


def _quoted(content: bytes) -> str:
    parts = []
    for index, byte in enumerate(content):
        if byte in _ESCAPES:
            parts.append(_ESCAPES[byte])
        elif 0x20 <= byte < 0x7F:
            parts.append(chr(byte))
        else:
            # The escape is as short as possible, unless a digit follows (strace, src/util.c: string_quote).
            is_digit_next = content[index + 1 : index + 2] in tuple(b"%d" % digit for digit in range(8))
            parts.append(f"\\{byte:03o}" if is_digit_next else f"\\{byte:o}")
    return "".join(parts)
