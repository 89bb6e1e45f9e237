# SPDX-License-Identifier: Apache-2.0
"""The code of a process, as the unwinder asks for it: its bytes, and what they say of calls and returns.

Runs in the worker process.  What was found out is kept: the same addresses come again with each copy.  The
encodings of calls are in the Intel SDM volume 2, CALL: E8 rel32, and FF /2 with its addressing forms.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Optional

from ebpftrace.unwind.code_bytes import CodeBytes, CodePlace, Known, ReadFile
from ebpftrace.unwind.returns import Instructions, Return, Value, WayBack

LONGEST_FUNCTION = 1 << 14
"""A call's target so near before an address is taken for the beginning of its function."""
LONGEST_CALL = 7
"""Bytes of the longest call instruction, without prefixes."""
_ENDBR64 = bytes.fromhex("f30f1efa")
_JUMPS_OF_PLT = (bytes.fromhex("ff25"), bytes.fromhex("f2ff25"))
"""jmp *slot(%rip), with or without bnd: x86-64 psABI, procedure linkage table."""
_SIGNAL_RETURN = bytes.fromhex("48c7c00f0000000f05")
"""mov $15, %rax; syscall: what a signal handler returns to (rt_sigreturn), without having been called."""


class Code(CodeBytes):
    """Of x86-64."""

    def __init__(self, places: Sequence[CodePlace], read_file: ReadFile) -> None:
        super().__init__(places, read_file)
        self._instructions = Instructions(self.read, self.find_out)
        self._calls: dict[int, Known[bool]] = {}
        self._ways: dict[int, Known[WayBack]] = {}
        self._entries: dict[tuple[int, int, int], Known[Optional[Return]]] = {}

    def follows_call(self, address: int) -> bool:
        """A call ends at ``address``, or a signal handler returns there; True where nothing can be read."""
        return self.find_out(self._calls, address, lambda: self._follows_call(address))

    def _follows_call(self, address: int) -> bool:
        if not self.contains(address - 1):
            return False
        if self.is_signal_return(address):
            return True
        before = self._before(address)
        return not before or call_before(before) is not None

    def _before(self, address: int) -> bytes:
        """The bytes of the longest call, or what there is of them where a mapping begins."""
        for length in range(LONGEST_CALL, 1, -1):
            before = self.read(address - length, length)
            if len(before) == length:
                return before
        return b""

    def is_signal_return(self, address: int) -> bool:
        """The code there has the kernel go on where a signal interrupted."""
        return self.read(address, len(_SIGNAL_RETURN)) == _SIGNAL_RETURN

    def begins_here(self, address: int) -> bool:
        """A stack may begin with this return address: no call ends there, and its code returns to nobody."""
        return not self.follows_call(address) and self.way_back(address).never

    def way_back(self, address: int) -> WayBack:
        """How the code at ``address`` returns."""
        return self.find_out(self._ways, address, lambda: self._instructions.way_back(address))

    def may_lead_to(self, return_address: int, address: int, depth: int) -> bool:
        """The call before ``return_address`` may lead to ``address``, ``depth`` bytes below its own place.

        Any call by register or memory may, and any of code that was made: it is patched as it runs.
        A direct one calls the function that holds the address, or a PLT entry, or one that jumps there, or by
        a register to where nobody can tell.
        """
        if self.is_made(address) or self.is_made(return_address - 1):
            return True
        target = self._target(return_address)
        if target is None or 0 <= address - target < LONGEST_FUNCTION:
            return True
        entry = self.read(target, len(_ENDBR64) + 3)
        entry = entry[len(_ENDBR64) :] if entry.startswith(_ENDBR64) else entry
        return (
            entry.startswith(_JUMPS_OF_PLT)
            or not entry
            or self._entered(target, address, depth) is not None
            or self._instructions.calls_last_by_register(target)
        )

    def entered(self, return_address: int, address: int, depth: int) -> Optional[Return]:
        """How the frame is left if that call led to it, by what its instructions say from the first on.

        None unless they come to ``address`` and have the stack ``depth`` bytes lower by then.
        """
        target = self._target(return_address)
        return None if target is None else self._entered(target, address, depth)

    def sp_after_call(self, address: int) -> Optional[Value]:
        """Where the stack pointer is when all is undone that the call before ``address`` needed."""
        return self._instructions.sp_after_call(address)

    def _target(self, return_address: int) -> Optional[int]:
        """Of a direct call; None for another."""
        call = call_before(self._before(return_address))
        return None if call is None or call.displacement is None else return_address + call.displacement

    def _entered(self, target: int, address: int, depth: int) -> Optional[Return]:
        return self.find_out(
            self._entries,
            (target, address, depth),
            lambda: self._instructions.entered(target, address, depth),
        )


class Call(NamedTuple):
    """A call; ``displacement`` is from its end to its target, None if it goes by register or memory."""

    displacement: Optional[int]


def call_before(code: bytes) -> Optional[Call]:
    """The call instruction that ends where ``code`` ends, None if there is none."""
    if len(code) >= 5 and code[-5] == 0xE8:
        return Call(int(struct.unpack("<i", code[-4:])[0]))
    for length in (2, 3, 4, 6, 7):
        if len(code) >= length and code[-length] == 0xFF and _form(code[-length + 1 :]) == length:
            return Call(None)
    return None


def _form(operand: bytes) -> int:
    """Length of FF /2 with this ModRM byte and what follows it; 0 if it is not a near call."""
    mode, extension, base = operand[0] >> 6, operand[0] >> 3 & 7, operand[0] & 7
    if extension != 2:
        return 0
    if mode == 3:
        return 2
    has_sib = base == 4
    if has_sib and len(operand) > 1 and mode == 0 and operand[1] & 7 == 5:
        return 7
    if mode == 0 and base == 5:
        return 6
    return 2 + has_sib + (0, 1, 4)[mode]
