# SPDX-License-Identifier: Apache-2.0
"""The records of ``bpf/trace_shared.h`` as Python reads them, and the constants of the call trace.

The C receives the constants as ``-D`` definitions (``definitions``), so each is defined only here.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from enum import IntEnum

from ebpftrace import syscall_numbers
from ebpftrace.capture.btf import Btf
from ebpftrace.capture.layout import BPF_F_NO_PREALLOC, PYTHON_FRAMES, PYTHON_THREADS, Machine, ring_pages
from ebpftrace.defaults import STACK_BYTES
from ebpftrace.strace.selection import CALLS

_NOT_A_CALL = 0xFFFF
"""The number of calls that a machine lacks."""

MAX_NUMBERS = 512
MAX_THREADS = 65_536
RECORD_PAGES = 8192
"""Ring buffer of all records, in units of 4 KiB: 300,000 calls; a power of two."""
CLONE_WORDS = 11
READ_PARENT_TID, READ_PIDFD = 1, 2
EXEC_STRINGS = 32
EXEC_STRING_BYTES = 40
"""strace shows 32 arguments of 32 bytes each (strace(1), -s)."""
MAX_VARIABLES = 1024
"""Most variables of the environment that are counted."""
PATH_BYTES = 4096


class RecordKind(IntEnum):
    """Kinds of records."""

    RETURNED = 1
    CLONED = 2
    LEAVES = 3
    EXECUTES = 4
    ENDED = 5
    EXECUTED = 6
    STACK = 7


class TracedT(ctypes.Structure):
    """``struct traced_t``: a task whose calls are traced."""

    _fields_ = (
        ("entered_at", ctypes.c_uint64),
        ("tgid", ctypes.c_uint32),
        ("image", ctypes.c_uint32),
        ("waits_for_exec", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class LostT(ctypes.Structure):
    """``struct lost_t``."""

    _fields_ = (("calls", ctypes.c_uint64), ("stacks", ctypes.c_uint64), ("threads", ctypes.c_uint64))


class TotalT(ctypes.Structure):
    """``struct total_t``: one line of the summary."""

    _fields_ = (("calls", ctypes.c_uint64), ("errors", ctypes.c_uint64), ("ns", ctypes.c_uint64))


HEAD = struct.Struct("=QIHH")
CALL = struct.Struct("=QIHHQqQ6QI4x")
"""``struct call_t``: at, tid, kind, number, entered_at, returned, lost, six arguments, tgid."""
CLONE_TAIL = struct.Struct(f"={CLONE_WORDS}QIIii")
"""``struct clone_t`` after its call: arguments, fetched, is_read, parent_tid, pidfd."""
EXEC_TAIL = struct.Struct(f"={EXEC_STRINGS}Q{EXEC_STRINGS}iIIii")
"""``struct exec_t`` after its call, up to strings: pointers, sizes, string_count, is_open,
variable_count, path_size."""
STACK_TAIL = struct.Struct("=6I")
"""``struct stack_t`` after its head, up to its frames of Python code: size, is_cut, tgid, image, missing,
python_count."""
PYTHON_PROCESSES = 1024
"""Processes whose frames of Python code are recorded at once."""


@dataclass(frozen=True)
class Filters:
    """Which calls are recorded, and how."""

    calls: frozenset[str]
    min_bytes: int = 0
    only_failed: bool = False
    only_successful: bool = False
    follow_forks: bool = True
    timed: bool = False
    """Record the time of the entry as well."""
    counted: bool = False
    """Keep a summary."""
    printed: bool = True
    """Send records."""
    stacks: bool = False


def numbers() -> dict[str, int]:
    """Return the numbers of the calls that can be traced on this machine, by name."""
    return {name: number for name, number in syscall_numbers.numbers().items() if name in CALLS}


def definitions(machine: Machine, filters: Filters, preallocated: bool) -> dict[str, int]:
    """The constants of ``bpf/trace*`` by name.  Raises CannotTrace."""
    own = numbers()
    constants = {
        **machine.definitions(),
        "EXIT_CODE_OFFSET": Btf.of_running_kernel().member_offset("task_struct", "exit_code"),
        "CPUS": machine.cpus,
        "MAX_NUMBERS": MAX_NUMBERS,
        "MAX_THREADS": MAX_THREADS,
        "RECORD_PAGES": ring_pages(RECORD_PAGES, machine.page),
        "CLONE_WORDS": CLONE_WORDS,
        "CLONE_ARGS_SIZE_VER0": syscall_numbers.CLONE_ARGS_SIZE_VER0,
        "READ_PARENT_TID": READ_PARENT_TID,
        "READ_PIDFD": READ_PIDFD,
        "EXEC_STRINGS": EXEC_STRINGS,
        "EXEC_STRING_BYTES": EXEC_STRING_BYTES,
        "MAX_VARIABLES": MAX_VARIABLES,
        "PATH_BYTES": PATH_BYTES,
        "STACK_BYTES": STACK_BYTES if filters.stacks else 0,
        "PYTHON_FRAMES": PYTHON_FRAMES,
        "PYTHON_THREADS": PYTHON_THREADS,
        "PYTHON_PROCESSES": PYTHON_PROCESSES,
        "HASH_FLAGS": 0 if preallocated else BPF_F_NO_PREALLOC,
        "MIN_BYTES": filters.min_bytes,
        "ONLY_FAILED": int(filters.only_failed),
        "ONLY_SUCCESSFUL": int(filters.only_successful),
        "FOLLOW_FORKS": int(filters.follow_forks),
        "COUNTED": int(filters.counted),
        "PRINTED": int(filters.printed),
    }
    constants.update({f"RECORD_{kind.name}": int(kind) for kind in RecordKind})
    constants.update({f"NR_{name.upper()}": own.get(name, _NOT_A_CALL) for name in CALLS})
    return constants
