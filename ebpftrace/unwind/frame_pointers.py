# SPDX-License-Identifier: Apache-2.0
"""Callers by frame pointers alone: what is left where unwind tables cannot be read.

x86_64: code that keeps them begins with push %rbp; mov %rsp,%rbp: rbp then points to the caller's rbp,
with the return address above it (x86-64 psABI 3.2.2).  Most programs are built without; there rbp is
data, and the walk ends early, skips callers or is wrong.

aarch64: x29 points to the same two words, and nearly all programs are built with them (AAPCS64 6.4.6).  The
return address of a function that calls no other, such as those that make system calls, is in x30 alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple, Optional

from ebpftrace.unwind.copies import (
    AARCH64_ADDRESS,
    AARCH64_REGISTERS_SIZE,
    REGISTERS_SIZE,
    Pc,
    Registers,
    StackCopy,
)
from ebpftrace.unwind.modules import Layout

MAX_FRAMES = 1024
_RECORD = struct.Struct("<QQ")

_AARCH64 = struct.Struct("<31Q2Q")
"""x0 to x30, sp and pc: how ``struct pt_regs`` begins (arch/arm64/include/asm/ptrace.h)."""
_X29, _X30, _AARCH64_SP, _AARCH64_PC = 29, 30, 31, 32


class _Start(NamedTuple):
    pc: int
    sp: int
    frame: int
    """The innermost frame record."""
    link: Optional[int] = None
    """A return address that may be in no record yet."""
    address_mask: int = (1 << 64) - 1
    """What of a return address is the address."""


def frame_pointer_walk(copy: StackCopy, layout: Layout) -> tuple[Pc, ...]:
    """The addresses found in a copy, innermost first, cut where one is in no code of ``layout``.

    Empty for registers of no machine that is known here.
    """
    start = _start(copy.registers)
    if start is None:
        return ()

    def is_known(address: int) -> bool:
        return layout.find(address - 1) is not None

    chain = islice(_return_addresses(copy.memory, start.sp, start.frame), MAX_FRAMES - 2)
    callers = [address & start.address_mask for address in chain]
    if start.link is not None:
        link = start.link & start.address_mask
        if is_known(link) and callers[:1] != [link]:
            callers.insert(0, link)
    return (Pc(start.pc, True), *(Pc(address, False) for address in takewhile(is_known, callers)))


def _start(registers: bytes) -> Optional[_Start]:
    """The size tells the machine, since a copy does not."""
    if len(registers) == REGISTERS_SIZE:
        regs = Registers.from_bytes(registers)
        return _Start(regs.ip, regs.sp, regs.bp)
    if len(registers) == AARCH64_REGISTERS_SIZE:
        words = _AARCH64.unpack_from(registers)
        return _Start(words[_AARCH64_PC], words[_AARCH64_SP], words[_X29], words[_X30], AARCH64_ADDRESS)
    return None


def _return_addresses(memory: bytes, sp: int, frame: int) -> Iterator[int]:
    """Those of the chain of frame records that begins at ``frame``; the copy begins at ``sp``."""
    while 0 <= frame - sp <= len(memory) - _RECORD.size:
        above, return_address = _RECORD.unpack_from(memory, frame - sp)
        yield return_address
        # Frames lie one above the other, or it is no chain.
        if above <= frame:
            break
        frame = above
