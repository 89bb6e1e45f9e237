# SPDX-License-Identifier: Apache-2.0
"""What the kernel side copies, and what unwinding makes of it.

Registers are ``struct pt_regs`` of x86_64 (arch/x86/include/asm/ptrace.h): 21 words, 168 bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
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

AARCH64_REGISTERS_SIZE = 288
REGISTERS_SIZES = {"x86_64": REGISTERS_SIZE, "aarch64": AARCH64_REGISTERS_SIZE}
"""Bytes of ``struct pt_regs`` by machine (uname(2)): those that stacks are unwound on by tables."""

AARCH64_ADDRESS = (1 << 48) - 1
"""What of a return address is the address: above it may be its signature (Arm ARM, pointer authentication).

Code lies below unless a program asks for addresses beyond (Documentation/arch/arm64/memory.rst).
"""

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
    """One copy of a thread's user registers and stack, made by the BPF program at a call."""

    signature: int
    at: int
    """CLOCK_MONOTONIC nanoseconds: ``made_at`` of the mapping, ``started_at`` of the created thread, or the
    exit of the brk call."""
    tid: int
    """The thread that made the call."""
    registers: bytes
    """``struct pt_regs``, of the machine's size; its stack pointer is the address of memory[0]."""
    memory: bytes
    truncated: bool = False
    """The copy ended at the size limit, not at the end of the stack."""
    python: tuple[tuple[int, int, int, int], ...] = ()
    """Frames of Python code, innermost first, as ``cpython.PythonCode.groups`` takes them."""
    has_more_python: bool = False
    """There were more: the outer ones are not among them."""
    missing: int = 0
    """Pages that could not be read and are zeros in ``memory``: bit n is for memory[first + n * PAGE], where
    ``first`` is the number of bytes in the rest of the stack pointer's own page."""
    signed: int = 0
    """Bytes of the stack, above the stack pointer, that were hashed for the signature."""
    argument: tuple[int, ...] = ()
    """Words of the object whose address the created thread's start routine gets, from the word before it on.

    Empty if they were not read."""


class WaitingBytes:
    """Bytes of the copies that wait to be unwound, of all traced processes together."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0


FramesOf = Callable[[StackCopy, Sequence[int]], Mapping[int, Frame]]
"""Maps offsets in a copy, from the stack pointer, to the frames that contain them, if that is certain."""


IN_LINK_REGISTER = -8
"""In place of an offset: the first caller was found in x30 of the registers copied, which are signed too."""

PAGE = 4096
"""Bytes of a step in which stacks and code are read: the smallest page, which divides every other."""


class CompiledCode(NamedTuple):
    """Code with one size of its frames, [start, end)."""

    start: int
    end: int
    size: int
    """Bytes of a frame with its return address, at every call that is made in it."""
    deoptimized: int
    """A frame that may not go on in this code returns to this address instead; 0 if that is not known."""
    original: int
    """Where such a frame keeps its own address, in bytes from its stack pointer."""


class MadePage(NamedTuple):
    """A page of code that a JIT compiler made; empty if it is none, or can't be read any more."""

    content: bytes = b""
    compiled: tuple[CompiledCode, ...] = ()
    """What a JVM compiled that lies in it."""


class End(Enum):
    """Why a walk ended."""

    OUTERMOST = "outermost"
    """Nothing called the last frame: it is complete."""
    COPY = "copy"
    """The caller's frame is beyond the end of the copy."""
    ABSENT = "absent"
    """The caller's frame is in a page that was not in memory."""
    OTHER_STACK = "other-stack"
    """The caller's frame is on another stack: of a signal handler (sigaltstack(2)), of a coroutine."""
    NO_TABLE = "no-table"
    """The code has no unwind table, and its instructions do not show how it returns."""
    NO_CODE = "no-code"
    """The return address is in no known code."""
    NO_CALL = "no-call"
    """There is no call before the return address."""
    TOO_LONG = "too-long"
    """There are more frames than the limit."""
    FAILED = "failed"
    """Registers or tables are invalid."""


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
    """Why there are no more frames."""
    slots: tuple[Optional[int], ...] = ()
    """The offset at which each pc was found, from the stack pointer; None if unknown, or IN_LINK_REGISTER."""
    guessed: Optional[int] = None
    """The first frame whose caller only a frame pointer shows, in code that can't be read."""
    lacking: int = 0
    """Bytes by which the copy is too short, if known; only for an ``end`` COPY."""
    stopped_at: Optional[int] = None
    """The pc that is in no executable mapping, for an ``end`` NO_CODE."""

    @property
    def complete(self) -> bool:
        """Whether all frames are there, and none is a guess."""
        return self.end is End.OUTERMOST and self.guessed is None

    def extents(self) -> list[tuple[int, int, int]]:
        """The extents of frames on the stack: (start, end, index in ``pcs``), ascending and disjoint; x86-64.

        A frame ends with its return address, which its call has pushed (System V ABI, x86-64 supplement,
        3.2.2), and begins at the end of its callee's.  Frames for which either is uncertain are left out:
        those next to a signal's, those above a guess, and the outermost.
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


class Extents:
    """Which frame of a walk contains a byte of the stack; see ``Walk.extents``."""

    def __init__(self, walk: Walk) -> None:
        self._extents = walk.extents()
        self._starts = [start for start, _, _ in self._extents]

    def frame_at(self, offset: int) -> Optional[int]:
        """The index in ``pcs`` for an offset from the stack pointer; None if it is not certain."""
        at = bisect_right(self._starts, offset) - 1
        return self._extents[at][2] if at >= 0 and offset < self._extents[at][1] else None


def is_native(frame: Frame) -> bool:
    """Whether it is a physical frame: neither inlined nor of Python code, which is in no module."""
    return not frame.inlined and (frame.module is not None or frame.offset is not None)


class Unwound(NamedTuple):
    """The stack of a copy, and the offsets of its native frames (``Walk.slots``)."""

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
