# SPDX-License-Identifier: Apache-2.0
"""What the unwinder must know of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Union

from ebpftrace.unwind.code_bytes import CodeBytes, CodePlace, ReadFile
from ebpftrace.unwind.copied import Caller, CallerNotFound, StackFrame
from ebpftrace.unwind.copies import Registers


class Architecture(NamedTuple):
    """One machine: its registers, and how callers are found where no table says it."""

    registers: type[Registers]
    register_names: tuple[str, ...]
    """The words of ``struct pt_regs``; drgn knows them by these names, or with an "r" before."""
    registers_size: int
    address_space: int
    """User addresses lie below."""
    code: Callable[[Sequence[CodePlace], ReadFile], CodeBytes]
    find_caller: Callable[[StackFrame, Sequence[int], Any], Union[Caller, CallerNotFound]]
    """The caller of a frame without a table; takes the entries of programs, and what ``code`` made."""
    pushes_return_address: bool
    """A call leaves the return address on the stack; else it is in a register at first."""
    signs_return_addresses: bool
    """What is stored of them may be signed above the address."""


def architecture_of(machine: str) -> Architecture:
    """The one that uname(2) calls so.  Raises NotImplementedError, ImportError without what it needs."""
    if machine == "x86_64":
        from ebpftrace.unwind.fallback import X86_64

        return X86_64
    if machine == "aarch64":
        from ebpftrace.unwind.aarch64 import AARCH64

        return AARCH64
    raise NotImplementedError(machine)
