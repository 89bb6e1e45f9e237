# SPDX-License-Identifier: Apache-2.0
"""GLIBC_TUNABLES and MALLOC_ARENA_MAX in the environment that a process was started with.

The environment is a block of strings that end in NUL (proc(5), ``/proc/PID/environ``).
"""

from __future__ import annotations

from typing import Optional

from ebpftrace.procfs.access import read_small, task_dir, through_live_task

_VARIABLE = b"GLIBC_TUNABLES="
_NAMESPACE = b"glibc."
_ARENA_MAX = b"glibc.malloc.arena_max"
_ARENA_MAX_ALIAS = b"MALLOC_ARENA_MAX="
_MAX_DIGITS = 64
"""Python takes seconds to parse a million decimal digits (before 3.9.14 and 3.10.7)."""


def read_environment(pid: int) -> bytes:
    """Read the environment.  Raises ``ProcessGone`` or ``CannotTrace``."""
    return through_live_task(pid, "environment", lambda tid: read_small(f"{task_dir(pid, tid)}/environ"))


def tunable(environment: bytes, name: bytes) -> Optional[int]:
    """The value of ``name`` in GLIBC_TUNABLES, or None.  Numbers are as in C (dl-tunables.c).

    The last setting counts, as in glibc; one that is not a number is ignored.  glibc up to 2.37 cuts the
    variable in place into one string per setting, so settings may follow as separate strings.
    """
    found = None
    inside = False
    for text in environment.split(b"\0"):
        if text.startswith(_VARIABLE):
            inside, text = True, text[len(_VARIABLE) :]
        elif not text.startswith(_NAMESPACE):
            inside = False
        if inside:
            for setting in text.split(b":"):
                key, _, value = setting.partition(b"=")
                if key == name:
                    number = _c_number(value)
                    found = found if number is None else number
    return found


def arena_limit(environment: bytes) -> Optional[int]:
    """Limit of malloc's arenas; None if the environment sets none.

    A tunable takes precedence over its old name in the environment, and 0 means no limit (dl-tunables.c,
    arena.c).
    """
    limit = tunable(environment, _ARENA_MAX)
    if limit is None:
        for text in environment.split(b"\0"):
            if text.startswith(_ARENA_MAX_ALIAS):
                limit = _c_number(text[len(_ARENA_MAX_ALIAS) :])
                break
    return limit or None


def _c_number(text: bytes) -> Optional[int]:
    if len(text) > _MAX_DIGITS:
        return None
    digits = text.decode("ascii", "replace").lower()
    try:
        if digits.startswith("0x"):
            value = int(digits, 16)
        else:
            value = int(digits, 8 if digits.startswith("0") else 10)
    except ValueError:
        return None
    return value if 0 <= value < 1 << 64 else None
