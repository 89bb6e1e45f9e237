"""What the kernel side copies, and what unwinding makes of it.

Registers are ``struct pt_regs`` of x86_64 (arch/x86/include/asm/ptrace.h): 21 words, 168 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple, Optional

REGISTER_NAMES = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss",
)  # fmt: skip
REGISTERS = struct.Struct(f"<{len(REGISTER_NAMES)}Q")
REGISTERS_SIZE = REGISTERS.size

_BP = REGISTER_NAMES.index("bp")
_ORIG_AX = REGISTER_NAMES.index("orig_ax")
_IP = REGISTER_NAMES.index("ip")
_CS = REGISTER_NAMES.index("cs")
_SP = REGISTER_NAMES.index("sp")

TABLES_OF = "x86_64"
"""The machine (uname(2)) that stacks are unwound on by tables; on others, by frame pointers."""

USER_CS = 0x33
"""Code segment of 64-bit user code (arch/x86/include/asm/segment.h, __USER_CS)."""


class Registers(NamedTuple):
    """The words of ``struct pt_regs`` that unwinding needs by name, and all of them."""

    words: tuple[int, ...]

    @classmethod
    def from_bytes(cls, raw: bytes) -> Registers:
        """Raises struct.error if ``raw`` is not REGISTERS_SIZE bytes."""
        return cls(REGISTERS.unpack(raw))

    def to_bytes(self) -> bytes:
        """The layout of the kernel, REGISTERS_SIZE bytes."""
        return REGISTERS.pack(*self.words)

    @property
    def ip(self) -> int:
        """Instruction pointer."""
        return self.words[_IP]

    @property
    def sp(self) -> int:
        """Stack pointer."""
        return self.words[_SP]

    @property
    def bp(self) -> int:
        """Frame pointer, where the code keeps one."""
        return self.words[_BP]

    @property
    def in_system_call(self) -> bool:
        """``orig_ax`` is a call number at a system call and negative elsewhere."""
        return self.words[_ORIG_AX] >> 63 == 0

    @property
    def is_64_bit(self) -> bool:
        """Taken in 64-bit code; 32-bit code has another layout of everything."""
        return self.words[_CS] == USER_CS

    def replace(self, ip: int, sp: int, bp: int) -> Registers:
        """The same registers with other instruction, stack and frame pointers."""
        words = list(self.words)
        words[_IP], words[_SP], words[_BP] = ip, sp, bp
        return Registers(tuple(words))


@dataclass(frozen=True)
class StackCopy:
    """One copy of a thread's user registers and stack, made by the kernel side at a call."""

    signature: int
    at: int
    """CLOCK_MONOTONIC nanoseconds."""
    tid: int
    registers: bytes
    """``struct pt_regs``, REGISTERS_SIZE bytes; its stack pointer is the address of memory[0]."""
    memory: bytes
    truncated: bool = False
    """The copy ended at the size limit, not at the end of the stack."""
    python: tuple[tuple[int, int, int], ...] = ()
    """Frames of Python code, innermost first, as ``process.cpython.CodeObjects`` takes them."""


class Pc(NamedTuple):
    """One physical frame of a walk."""

    address: int
    exact: bool
    """The address of an instruction (frame 0, a signal); else a return address, one past the call."""


@dataclass(frozen=True)
class Walk:
    """The physical frames of one copy, innermost first."""

    pcs: tuple[Pc, ...] = ()
    complete: bool = False
    """The outermost frame was reached: its unwind table says that it has no caller."""
    truncated: bool = False
    """Unwinding needed a byte that is not in the copy."""
    guessed: bool = False
    """Some frame had no unwind table; its caller was found by frame pointer or by searching the stack."""
    stopped_at: Optional[int] = None
    """The pc that lies in no executable mapping, where the walk was cut there."""


class Name(NamedTuple):
    """One function at an address; inlined ones come first."""

    function: Optional[str]
    file: Optional[str]
    line: Optional[int]
    inlined: bool
    start: Optional[int] = None
    """File address where the function's symbol begins; only of the one that others are inlined into."""
