# SPDX-License-Identifier: Apache-2.0
"""What the kernel side copies, and what unwinding makes of it.

Registers are ``struct pt_regs`` of x86_64 (arch/x86/include/asm/ptrace.h): 21 words, 168 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.model import Frame, Stack

REGISTER_NAMES = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss",
)  # fmt: skip
REGISTERS = struct.Struct(f"<{len(REGISTER_NAMES)}Q")
REGISTERS_SIZE = REGISTERS.size

_INDEX = {name: index for index, name in enumerate(REGISTER_NAMES)}
_WORD_MASK = (1 << 64) - 1
_WORD = 8
_BP, _IP, _CS, _SP = (_INDEX[name] for name in ("bp", "ip", "cs", "sp"))

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
    def is_64_bit(self) -> bool:
        """Taken in 64-bit code; 32-bit code has another layout of everything."""
        return self.words[_CS] == USER_CS

    def named(self, name: str) -> int:
        """A register by its name in REGISTER_NAMES."""
        return self.words[_INDEX[name]]

    def replace(self, **changed: int) -> Registers:
        """The same registers but for those named; a value is taken modulo 2^64."""
        words = list(self.words)
        for name, word in changed.items():
            words[_INDEX[name]] = word & _WORD_MASK
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
    missing: int = 0
    """Pages that could not be read, zeros in ``memory``: bit n is that of memory[first + n * PAGE], where
    ``first`` is what is left of the stack pointer's own page."""
    signed: int = 0
    """Bytes of the stack, from its pointer on, that went into the signature."""
    argument: tuple[int, ...] = ()
    """Words of what the created thread's start routine is given the address of, from the one before it on.

    Empty where they were not read."""


FramesOf = Callable[[StackCopy, Sequence[int]], Mapping[int, Frame]]
"""Says whose frames bytes of a copy lie in, by their distance from the stack pointer, where it is certain."""


PAGE = 4096
"""Bytes; on machines with larger pages tables are not read."""


class End(Enum):
    """Why a walk goes no further."""

    OUTERMOST = "outermost"
    """Nothing called the last frame: it is complete."""
    COPY = "copy"
    """The caller's frame lies beyond what was copied."""
    ABSENT = "absent"
    """... or in a page that was not in memory."""
    OTHER_STACK = "other-stack"
    """... or on another stack: of a signal handler (sigaltstack(2)), of a coroutine."""
    NO_TABLE = "no-table"
    """The code has no unwind table, and its instructions do not say how it returns."""
    NO_CODE = "no-code"
    """It returns to where no code is known."""
    NO_CALL = "no-call"
    """It returns to where nothing was called."""
    TOO_LONG = "too-long"
    """There are more frames than are taken."""
    FAILED = "failed"
    """Registers or tables make no sense."""


class Pc(NamedTuple):
    """One physical frame of a walk."""

    address: int
    exact: bool
    """The address of an instruction (frame 0, a signal); else a return address, one past the call."""


@dataclass(frozen=True)
class Walk:
    """The physical frames of one copy, innermost first."""

    pcs: tuple[Pc, ...] = ()
    end: End = End.FAILED
    """Why there are no more."""
    slots: tuple[Optional[int], ...] = ()
    """Where each pc was found: bytes from the stack pointer.  None: in a register, or not known."""
    guessed: Optional[int] = None
    """The first frame whose caller nothing but a frame pointer tells, in code that cannot be read."""
    lacking: int = 0
    """Bytes that the copy is too short by, as far as is known; of an ``end`` COPY only."""
    stopped_at: Optional[int] = None
    """The pc that lies in no executable mapping, of an ``end`` NO_CODE."""

    @property
    def complete(self) -> bool:
        """Every frame is there, and none is a guess."""
        return self.end is End.OUTERMOST and self.guessed is None

    def extents(self) -> list[tuple[int, int, int]]:
        """Which bytes of the stack are whose: (start, end, position in ``pcs``), ascending and disjoint.

        A frame ends with the address that it returns to, which its call has pushed (System V ABI, x86-64
        supplement, 3.2.2), and begins where its callee's ends.  Frames of which either is not certain are
        left out: those next to a signal's, those above a guess, the outermost.
        """
        found: list[tuple[int, int, int]] = []
        begin: Optional[int] = 0
        last = len(self.pcs) if self.guessed is None else min(len(self.pcs), self.guessed + 1)
        for number in range(1, min(last, len(self.slots))):
            slot = self.slots[number]
            if slot is None or self.pcs[number].exact:
                begin = None
                continue
            if begin is not None:
                if slot < begin:
                    break
                found.append((begin, slot + _WORD, number - 1))
            begin = slot + _WORD
        return found


def is_native(frame: Frame) -> bool:
    """A physical frame: not one that is inlined, nor of Python code, which lies in no module."""
    return not frame.inlined and (frame.module is not None or frame.offset is not None)


class Unwound(NamedTuple):
    """The stack of a copy, and where its native frames were found: ``Walk.slots``."""

    stack: Stack
    slots: tuple[Optional[int], ...] = ()


class Name(NamedTuple):
    """One function at an address; inlined ones come first."""

    function: Optional[str]
    file: Optional[str]
    line: Optional[int]
    inlined: bool
    start: Optional[int] = None
    """File address where the function's symbol begins; only of the one that others are inlined into."""
