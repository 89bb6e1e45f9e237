"""Tier 1: physical frames of one copy, by the unwind tables of the target's files (drgn).

Runs in the worker process.  The program that drgn sees has no debug info (with it, each walk costs
ten times as much) and no process: its memory is the copy.

Where code has no unwind table drgn would follow rbp, which in code without frame pointers is
garbage.  It does so by a read of 16 bytes (libdrgn/arch_x86_64.c, get_registers_from_frame_pointer; table
rules read at most 8), which is refused here; ``gaps`` then decides how to go on, and drgn is started again
from there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

import drgn

from ebpftrace.stacks.copies import REGISTER_NAMES, REGISTERS_SIZE, Pc, Registers, Walk
from ebpftrace.stacks.gaps import Caller, ReadCode, Stretch, cross
from ebpftrace.stacks.unwind_image import memory_file

ADDRESS_SPACE = 1 << 47
MAX_FRAMES = 1024
"""As many as drgn gives for one stack."""
MAX_GAPS = 64
_FRAME_POINTER_READ = 16


class LoadedImage(NamedTuple):
    """An unwind image (``unwind_image``) and where its file is loaded: [start, end)."""

    name: str
    image: bytes
    start: int
    end: int
    entry: int
    """Address of its first instruction, where a program begins."""


@dataclass
class _Reading:
    """The copy that is being unwound, and what was seen while it was."""

    start: int
    end: int
    """Addresses that can be read.  Set to ``start`` by the first failed read, and so every later one
    fails: drgn would go on with rbp, jumping over frames or looping."""
    memory: bytes
    outside: bool = False
    no_table: bool = False


class Unwinder:
    """Unwinds copies of one process with one set of loaded files.

    A file that drgn refuses is left out: to a walk it is code without tables.  ``executable`` are ascending,
    disjoint [start, end) ranges; ``code`` reads the bytes of the files mapped there.
    """

    def __init__(
        self, images: Sequence[LoadedImage], executable: Sequence[tuple[int, int]], code: ReadCode
    ) -> None:
        self._starts = [start for start, _ in executable]
        self._ends = [end for _, end in executable]
        self._code = code
        self._entries = frozenset(image.entry for image in images)
        self._reading = _Reading(0, 0, b"")
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
        # drgn raises many types on bad data; each is "this file is unusable".
        with suppress(Exception):
            module = self._program.extra_module(image.name, image.start, create=True)
            # Before the file: this is what fixes its load bias.
            module.address_range = (image.start, image.end)
            module.debug_file_status = drgn.ModuleFileStatus.DONT_WANT
            module.try_file(image.name, fd=memory_file("unwind", image.image), force=True)

    def walk(self, registers: bytes, memory: bytes) -> Walk:
        """Physical frames of a copy, cut at the first pc outside executable memory.

        Never raises on bad contents of copy or files; such a walk just ends early.
        """
        regs = Registers.from_bytes(registers)
        if not regs.is_64_bit:
            return Walk()
        stack = regs.sp
        walk, last = self._stretch(regs, stack, memory)
        for _ in range(MAX_GAPS):
            if last is None or len(walk.pcs) >= MAX_FRAMES:
                break
            gap = Stretch(last, stack, memory, regs.in_system_call and len(walk.pcs) == 1)
            caller = cross(gap, self._entries, self._region, self._code)
            if not isinstance(caller, Caller):
                return replace(
                    walk, complete=caller.outermost, truncated=caller.cut, stopped_at=caller.unknown
                )
            if caller.outermost:
                return Walk((*walk.pcs, Pc(caller.return_address, False)), complete=True, guessed=True)
            # drgn takes the first pc as exact; a return address may be one past the end of its function.
            onward = last.replace(ip=caller.return_address - 1, sp=caller.sp, bp=caller.bp)
            rest, last = self._stretch(onward, stack, memory)
            walk = Walk(
                (*walk.pcs, Pc(caller.return_address, False), *rest.pcs[1:])[:MAX_FRAMES],
                rest.complete, rest.truncated, walk.guessed or caller.guessed, rest.stopped_at,
            )  # fmt: skip
        return walk

    def _stretch(self, regs: Registers, stack: int, memory: bytes) -> tuple[Walk, Optional[Registers]]:
        """Frames by tables alone; and the registers of the last one, if it is one without a table."""
        self._reading = reading = _Reading(stack, stack + len(memory), memory)
        pcs: list[Pc] = []
        try:
            raw = drgn.Object.from_bytes_(self._program, self._pt_regs, regs.to_bytes())
            for frame in self._program.stack_trace(raw):
                try:
                    pc = frame.pc
                except LookupError:
                    # Follows only a frame whose table says that it has no caller, never a failed read.
                    return Walk(tuple(pcs), complete=True), None
                if self._region(pc - (not frame.interrupted)) is None:
                    return Walk(tuple(pcs), stopped_at=pc), None
                pcs.append(Pc(pc, frame.interrupted))
        except Exception:  # drgn raises many types on bad data; the frames before it are lost with it
            return Walk(), None
        last = _registers(regs, frame) if reading.no_table and not reading.outside and pcs else None
        return Walk(tuple(pcs), truncated=reading.outside), last

    def _region(self, address: int) -> Optional[int]:
        at = bisect_right(self._starts, address) - 1
        return at if at >= 0 and address < self._ends[at] else None

    def _read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        # Called five times a frame: the usual case first, in as few steps as it takes.
        reading = self._reading
        at = address - reading.start
        if at >= 0 and address + count <= reading.end and count != _FRAME_POINTER_READ:
            return reading.memory[at : at + count]
        if reading.end > reading.start or not reading.memory:
            if count == _FRAME_POINTER_READ:
                reading.no_table = True
            else:
                reading.outside = True
        reading.end = reading.start
        raise drgn.FaultError("not in the copy", address)


def _registers(regs: Registers, frame: Any) -> Registers:
    """The registers of a frame; those that its callees' tables did not tell are taken as unchanged."""
    known = frame.registers()
    return Registers(
        tuple(known.get(f"r{name}", known.get(name, word)) for name, word in zip(REGISTER_NAMES, regs.words))
    )
