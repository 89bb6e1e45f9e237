"""Tier 1: physical frames of one copy, by the unwind tables of the target's files (drgn).

Runs in the worker process.  The program that drgn sees has no debug info (with it, each walk costs
ten times as much) and no process: its memory is the copy.

drgn's rule for a frame without an unwind table is to follow rbp.  In code built without frame
pointers that is garbage, so its one 16-byte read at rbp (libdrgn/arch_x86_64.c,
get_registers_from_frame_pointer; table rules read at most 8) is where this module decides:

* Frame 0 inside a system call: glibc and musl end the unwind table of ``clone`` and ``clone3`` just
  before the ``syscall`` instruction, with the return address on top of the stack.  Taken from there.
* rbp is 0: the outermost frame as the x86-64 psABI marks it ("initial stack and register state").
* Else what rbp points to must be above the stack pointer, inside the copy, and its return address must
  lie in executable memory; the walk is then marked as guessed.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Optional

import drgn

from ebpftrace.stacks.copies import REGISTER_NAMES, REGISTERS_SIZE, Pc, Registers, Walk
from ebpftrace.stacks.unwind_image import memory_file

ADDRESS_SPACE = 1 << 47
_FRAME_POINTER_READ = 16
MAX_FRAMES = 1024
"""drgn's own limit for one stack."""


class LoadedImage(NamedTuple):
    """An unwind image (``unwind_image``) and where its file is loaded: [start, end)."""

    name: str
    image: bytes
    start: int
    end: int


@dataclass
class _Reading:
    """The copy that is being unwound, and what was seen while it was."""

    sp: int = 0
    memory: bytes = b""
    in_system_call: bool = False
    reads: int = 0
    failed: bool = False
    outside: bool = False
    no_table_at_call: bool = False
    zero_frame_pointer: bool = False
    guessed: bool = False


class Unwinder:
    """Unwinds copies of one process with one set of loaded files.

    A file that drgn refuses is left out and named in ``refused``: frames in it end the walk or are
    guessed.  ``executable`` are ascending, disjoint [start, end) ranges.
    """

    def __init__(self, images: Sequence[LoadedImage], executable: Sequence[tuple[int, int]]) -> None:
        self.refused: list[str] = []
        self._starts = [start for start, _ in executable]
        self._ends = [end for _, end in executable]
        self._reading = _Reading()
        self._program = drgn.Program(drgn.host_platform)
        self._program.set_enabled_debug_info_finders([])
        self._program.add_memory_segment(0, ADDRESS_SPACE, self._read)
        for image in images:
            self._add(image)
        # Without the language drgn looks for main() in all debug info to find it out.
        word = self._program.int_type("unsigned long", 8, False, language=drgn.Language.C)
        members = [drgn.TypeMember(word, name, 64 * i) for i, name in enumerate(REGISTER_NAMES)]
        self._pt_regs = self._program.struct_type(
            "pt_regs", REGISTERS_SIZE, members, language=drgn.Language.C
        )

    def _add(self, image: LoadedImage) -> None:
        try:
            module = self._program.extra_module(image.name, image.start, create=True)
            # Before the file: this is what fixes its load bias.
            module.address_range = (image.start, image.end)
            module.debug_file_status = drgn.ModuleFileStatus.DONT_WANT
            module.try_file(image.name, fd=memory_file("unwind", image.image), force=True)
        except Exception:  # drgn raises many types on bad data; each is "this file is unusable"
            self.refused.append(image.name)

    def walk(self, registers: bytes, memory: bytes) -> Walk:
        """Physical frames of a copy, cut at the first pc outside executable memory.

        Never raises on bad contents of copy or files; such a walk just ends early.
        """
        regs = Registers.from_bytes(registers)
        if not regs.is_64_bit:
            return Walk()
        self._reading = reading = _Reading(regs.sp, memory, in_system_call=regs.in_system_call)
        walk = self._walk_once(regs, reading)
        if not reading.no_table_at_call:
            return walk
        return_address = struct.unpack_from("<Q", memory)[0]
        # drgn takes the first pc as exact; a return address may be one past the end of its function.
        after_return = regs.replace(ip=return_address - 1, sp=regs.sp + 8)
        self._reading = _Reading(regs.sp, memory)
        rest = self._walk_once(after_return, self._reading)
        caller = () if not rest.pcs else (Pc(return_address, False), *rest.pcs[1:])
        return replace(rest, pcs=(Pc(regs.ip, True), *caller))

    def _walk_once(self, regs: Registers, reading: _Reading) -> Walk:
        pcs: list[Pc] = []
        complete = False
        stopped_at: Optional[int] = None
        try:
            raw = drgn.Object.from_bytes_(self._program, self._pt_regs, regs.to_bytes())
            for frame in self._program.stack_trace(raw):
                try:
                    pc = frame.pc
                except LookupError:
                    complete = True
                    break
                if not self._is_executable(pc - (not frame.interrupted)):
                    stopped_at = pc
                    break
                pcs.append(Pc(pc, frame.interrupted))
            else:
                complete = reading.zero_frame_pointer
        except Exception:  # drgn raises many types on bad data; the frames before it are lost with it
            return Walk()
        return Walk(
            tuple(pcs), complete and not reading.outside, reading.outside, reading.guessed, stopped_at
        )

    def _is_executable(self, address: int) -> bool:
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address < self._ends[at]

    def _read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        reading = self._reading
        first = reading.reads == 0
        reading.reads += 1
        if reading.failed:
            # Sticky: after one failed read drgn goes on with rbp, jumping over frames or looping.
            raise drgn.FaultError("not in the copy", address)
        found = (
            self._frame_pointer(address, first)
            if count == _FRAME_POINTER_READ
            else self._bytes(address, count)
        )
        if found is None:
            reading.failed = True
            raise drgn.FaultError("not in the copy", address)
        return found

    def _frame_pointer(self, address: int, first: bool) -> Optional[bytes]:
        reading = self._reading
        if first and reading.in_system_call and len(reading.memory) >= 8:
            reading.no_table_at_call = True
            return None
        if address == 0:
            reading.zero_frame_pointer = True
            return None
        if address < reading.sp or address % 8:
            return None
        found = self._bytes(address, _FRAME_POINTER_READ)
        if found is not None and self._is_executable(struct.unpack("<QQ", found)[1] - 1):
            reading.guessed = True
            return found
        return None

    def _bytes(self, address: int, count: int) -> Optional[bytes]:
        reading = self._reading
        start = address - reading.sp
        if start < 0 or start + count > len(reading.memory):
            reading.outside = True
            return None
        return reading.memory[start : start + count]
