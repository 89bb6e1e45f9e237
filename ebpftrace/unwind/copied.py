# SPDX-License-Identifier: Apache-2.0
"""A copy of a stack as the unwinder reads it, and what it says of a frame's caller: of any machine."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ebpftrace.defaults import MAX_STACK_BYTES
from ebpftrace.unwind.copies import PAGE, End, Registers

LARGEST_STACK = 16 << 20
"""Bytes: twice the default limit of a main thread's stack.  What lies beyond is another stack."""
_WORD = 8


class Caller(NamedTuple):
    """Registers of the calling frame."""

    registers: Registers
    exact: bool = False
    """It was interrupted, and did not call."""
    guessed: bool = False
    slot: Optional[int] = None
    """Address of the word that is its pc."""
    outermost: bool = False
    """It has no caller itself."""
    sp_known: bool = True
    """Else the stack pointer is somewhere above the one in the registers, and only rbp tells more."""


class CallerNotFound(NamedTuple):
    """Why there is no going on."""

    end: End
    unknown: Optional[int] = None
    """The return address there would be, if code were known to lie there: a JIT compiler's newest."""
    lacking: int = 0
    """Bytes that the copy is too short by."""


@dataclass(frozen=True)
class Copied:
    """Stack memory [start, start + len(memory)), but for what is missing of it."""

    start: int
    memory: bytes
    missing: int = 0
    """Pages, as ``copies.StackCopy`` has them."""
    is_cut: bool = False
    """The stack goes on where the copy ends."""

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.start + len(self.memory)

    def lacks(self, address: int) -> bool:
        """The page of an address inside was not in memory."""
        first = self.start - self.start % PAGE + PAGE
        return bool(self.missing and address >= first and self.missing >> (address - first) // PAGE & 1)

    def word(self, address: int) -> Optional[int]:
        """The word at ``address``, None outside of the copy."""
        at = address - self.start
        if at < 0 or at + _WORD > len(self.memory) or self.lacks(address) or self.lacks(address + _WORD - 1):
            return None
        return int(struct.unpack_from("<Q", self.memory, at)[0])

    def why_not(self, address: int) -> CallerNotFound:
        """Why there is no word at ``address``."""
        if not self.start <= address < self.end + LARGEST_STACK:
            return CallerNotFound(End.OTHER_STACK)
        # The last pages that a copy might have had may have been absent; nothing beyond them was ever read.
        was_read = not self.is_cut and address < self.start + PAGE + MAX_STACK_BYTES
        if address + _WORD <= self.end or was_read:
            return CallerNotFound(End.ABSENT)
        return CallerNotFound(End.COPY, lacking=address + _WORD - self.end)


class StackFrame(NamedTuple):
    """A frame without a table."""

    registers: Registers
    copy: Copied
    exact: bool
    """Its pc is that of an instruction, not one after a call."""
    sp_known: bool = True
    """As in ``Caller``."""
