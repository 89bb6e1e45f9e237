"""Callers by frame pointers alone: what is left where unwind tables cannot be read.

Code that keeps them begins with push %rbp; mov %rsp,%rbp: rbp then points to the caller's rbp, with the
return address above it (x86-64 psABI 3.2.2).  Most programs are built without; there rbp is
data, and the walk ends early, skips callers or is wrong.
"""

from __future__ import annotations

import struct

from ebpftrace.stacks.copies import Pc, Registers, StackCopy
from ebpftrace.stacks.modules import Layout

MAX_FRAMES = 1024
_RECORD = struct.Struct("<QQ")


def frame_pointer_walk(copy: StackCopy, layout: Layout) -> tuple[Pc, ...]:
    """The addresses found in a copy, innermost first, cut where one is in no code of ``layout``."""
    regs = Registers.from_bytes(copy.registers)
    pcs = [Pc(regs.ip, True)]
    at = regs.bp - regs.sp
    while len(pcs) < MAX_FRAMES and 0 <= at <= len(copy.memory) - _RECORD.size:
        saved, return_address = _RECORD.unpack_from(copy.memory, at)
        if layout.find(return_address - 1) is None:
            break
        pcs.append(Pc(return_address, False))
        # Frames lie one above the other, or it is no chain.
        above = saved - regs.sp
        if above <= at:
            break
        at = above
    return tuple(pcs)
