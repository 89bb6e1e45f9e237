# SPDX-License-Identifier: Apache-2.0
"""Tier 1: physical frames of one copy, by the unwind tables of the target's files (drgn).

Runs in the worker process.  The program that drgn sees has no debug info (with it, each walk costs
ten times as much) and no process: its memory is the copy.

Where code has no unwind table drgn would follow rbp, which in code without frame pointers is
garbage.  It does so by a read of 16 bytes (libdrgn/arch_x86_64.c, get_registers_from_frame_pointer; table
rules read at most 8), which is refused here; ``gaps`` then decides how to go on, and drgn is started again
from there.

A table is believed, but only as far as what it leads to is a caller: a call ends there, or it is where stacks
begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional, Union

import drgn

from ebpftrace.unwind.architecture import Architecture
from ebpftrace.unwind.code_bytes import CodeBytes
from ebpftrace.unwind.copied import Caller, CallerNotFound, Copied, StackFrame
from ebpftrace.unwind.copies import IN_LINK_REGISTER, End, MadePage, Pc, Registers, Walk
from ebpftrace.unwind.unwind_image import memory_file

MAX_FRAMES = 1024
"""As many as drgn gives for one stack."""
MAX_GAPS = 256
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

    copy: Copied
    start: int
    end: int
    """Addresses that can be read.  Set to ``start`` by the first failed read, and so every later one
    fails: drgn would go on with rbp, jumping over frames or looping."""
    failed_at: Optional[int] = None
    places: dict[int, set[int]] = field(default_factory=dict)
    """Where words were read, by what they are; only on aarch64, where the stack pointer does not say it."""


class _Found(NamedTuple):
    """Frames by tables alone, and what comes after the last of them."""

    frames: list[tuple[Pc, Optional[int]]]
    """With the address of the word that each is."""
    then: Union[CallerNotFound, StackFrame]


class Unwinder:
    """Unwinds copies of one process with one set of loaded files.

    A file that drgn refuses is left out: to a walk it is code without tables.
    """

    def __init__(self, images: Sequence[LoadedImage], code: CodeBytes, architecture: Architecture) -> None:
        self._architecture = architecture
        self._code = code
        self._entries = [image.entry for image in images]
        self._reading = _Reading(Copied(0, b""), 0, 0)
        self.tableless: set[int] = set()
        """Files with code on the last walk that has no unwind table."""
        self._program = drgn.Program(drgn.host_platform)
        self._program.set_enabled_debug_info_finders([])
        read = self._read_signed if architecture.signs_return_addresses else self._read
        self._program.add_memory_segment(0, architecture.address_space, read)
        for image in images:
            self._add(image)
        # Without the language drgn looks for main() in all debug info to find it out.
        word = self._program.int_type("unsigned long", 8, False, language=drgn.Language.C)
        members = [drgn.TypeMember(word, name, 64 * i) for i, name in enumerate(architecture.register_names)]
        self._pt_regs = self._program.struct_type(
            "pt_regs", architecture.registers_size, members, language=drgn.Language.C
        )

    def _add(self, image: LoadedImage) -> None:
        # drgn raises many types on bad data; each is "this file is unusable".
        with suppress(Exception):
            module = self._program.extra_module(image.name, image.start, create=True)
            # Before the file: this is what fixes its load bias.
            module.address_range = (image.start, image.end)
            module.debug_file_status = drgn.ModuleFileStatus.DONT_WANT
            module.try_file(image.name, fd=memory_file("unwind", image.image), force=True)

    @property
    def lacking(self) -> list[int]:
        """Pages of code without a file, by their addresses, that the last walk would have read."""
        return sorted(self._code.lacking)

    def walk(
        self,
        registers: bytes,
        memory: bytes,
        missing: int = 0,
        is_cut: bool = False,
        made: Optional[Mapping[int, MadePage]] = None,
    ) -> Walk:
        """Physical frames of a copy (``missing`` and ``is_cut`` as in ``copies.StackCopy``).

        ``made`` are pages, by their addresses, of code without a file.  Never raises on bad contents of copy
        or files; such a walk just ends early.
        """
        architecture = self._architecture
        regs = architecture.registers.from_bytes(registers)
        if not regs.is_64_bit:
            return Walk()
        self._code.lacking.clear()
        self.tableless.clear()
        self._code.made(made or {})
        if architecture.signs_return_addresses:
            regs = regs.replace(x30=self._code.stripped(regs.named("x30")))
        copy = Copied(regs.sp, memory, missing, is_cut)
        frames: list[tuple[Pc, Optional[int]]] = []
        guessed: Optional[int] = None
        then: Union[CallerNotFound, StackFrame] = StackFrame(regs, copy, True)
        caller: Union[Caller, CallerNotFound] = Caller(regs, exact=True)
        for _ in range(MAX_GAPS):
            if isinstance(caller, CallerNotFound) or len(frames) >= MAX_FRAMES:
                break
            frames.append((Pc(caller.registers.ip, caller.exact), caller.slot))
            if caller.outermost:
                caller = CallerNotFound(End.OUTERMOST)
                break
            if caller.sp_known:
                found, then = self._stretch(caller.registers, caller.exact, copy)
                frames += found
            else:
                then = StackFrame(caller.registers, copy, caller.exact, sp_known=False)
            if isinstance(then, CallerNotFound):
                caller = then
            else:
                file = self._code.file_of(then.registers.ip - (not then.exact))
                self.tableless |= set() if file is None else {file}
                caller = architecture.find_caller(then, self._entries, self._code)
            if isinstance(caller, Caller) and caller.guessed and guessed is None:
                guessed = len(frames) - 1
            if isinstance(caller, Caller) and not caller.exact:
                grown = caller.registers.sp - then.registers.sp  # type: ignore[union-attr]
                if grown < architecture.pushes_return_address:
                    caller = CallerNotFound(End.FAILED)
        end = caller if isinstance(caller, CallerNotFound) else CallerNotFound(End.TOO_LONG)
        frames = frames[:MAX_FRAMES]
        return Walk(
            tuple(pc for pc, _ in frames), end.end, self._offsets(frames, regs), guessed, end.lacking,
            end.unknown,
        )  # fmt: skip

    def _offsets(
        self, frames: Sequence[tuple[Pc, Optional[int]]], regs: Registers
    ) -> tuple[Optional[int], ...]:
        """Of the words that the frames of a copy with these registers are (``copies.Walk.slots``)."""
        offsets = [None if slot is None else slot - regs.sp for _, slot in frames]
        if not self._architecture.pushes_return_address and offsets[1:2] == [None]:
            caller, _ = frames[1]
            if not caller.exact and caller.address == regs.named("x30"):
                offsets[1] = IN_LINK_REGISTER
        return tuple(offsets)

    def _stretch(self, regs: Registers, exact: bool, copy: Copied) -> _Found:
        """The callers of a frame by tables alone, and then the first one that has none."""
        # drgn takes the first pc as exact; a return address may be one past the end of its function.
        start = regs if exact else regs.replace(ip=regs.ip - 1)
        self._reading = reading = _Reading(copy, copy.start, copy.end)
        frames: list[tuple[Pc, Optional[int]]] = []
        code = self._code
        last, last_pc, frame = regs, Pc(regs.ip, exact), None
        callee_sp = regs.sp
        try:
            raw = drgn.Object.from_bytes_(self._program, self._pt_regs, start.to_bytes())
            for number, frame in enumerate(self._program.stack_trace(raw)):
                if number == 0:
                    continue
                try:
                    address = frame.pc
                except LookupError:
                    # Follows only a frame whose table says that it has no caller, never a failed read.
                    return _Found(frames, CallerNotFound(End.OUTERMOST))
                pc = Pc(address, frame.interrupted)
                if not pc.exact:
                    if address == 0:
                        return _Found(frames, CallerNotFound(End.OUTERMOST))
                    if not code.contains(address - 1):
                        return _Found(frames, CallerNotFound(End.NO_CODE, unknown=address))
                sp = frame.sp
                frames.append((pc, None if pc.exact else self._slot(address, callee_sp, sp)))
                callee_sp = sp
                last_pc = pc
                if pc.exact and not code.contains(address):
                    # A jump to where there is no code made the signal.
                    return _Found(frames, StackFrame(self._registers(start, frame), copy, True))
                if not pc.exact and not code.follows_call(address):
                    begins = code.begins_here(address)
                    return _Found(frames, CallerNotFound(End.OUTERMOST if begins else End.NO_CALL))
            if frame is not None:
                last = self._registers(start, frame)
        except Exception:  # drgn raises many types on bad data; the frames before it are lost with it
            return _Found([], CallerNotFound(End.FAILED))
        if reading.failed_at is not None:
            return _Found(frames, copy.why_not(reading.failed_at))
        return _Found(frames, StackFrame(last.replace(ip=last_pc.address), copy, last_pc.exact))

    def _slot(self, address: int, callee_sp: int, sp: int) -> Optional[int]:
        """Where a return address stands in the frame of the callee, which ends at ``sp``; None if unknown."""
        if self._architecture.pushes_return_address:
            return sp - 8 if self._reading.copy.word(sp - 8) == address else None
        # Two words may be equal; which of them another call has returned to is not known.
        inside = [at for at in self._reading.places.get(address, ()) if callee_sp <= at < sp]
        return inside[0] if len(inside) == 1 else None

    def _read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        # Called five times a frame: the usual case first, in as few steps as it takes.
        reading = self._reading
        at = address - reading.start
        if at >= 0 and address + count <= reading.end and count != _FRAME_POINTER_READ:
            copy = reading.copy
            if not copy.missing or not (copy.lacks(address) or copy.lacks(address + count - 1)):
                return copy.memory[at : at + count]
        is_first = reading.end > reading.start or not reading.copy.memory
        if is_first and count != _FRAME_POINTER_READ and reading.failed_at is None:
            reading.failed_at = address
        reading.end = reading.start
        raise drgn.FaultError("not in the copy", address)

    def _read_signed(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        """drgn is given return addresses without their signatures: for such a program it takes no mask."""
        content = self._read(address, count, offset, physical)
        if count != 8:
            return content
        word = self._code.stripped(int.from_bytes(content, "little"))
        self._reading.places.setdefault(word, set()).add(address)
        return word.to_bytes(8, "little")

    def _registers(self, regs: Registers, frame: Any) -> Registers:
        """The registers of a frame; those that its callees' tables did not tell are taken as unchanged."""
        known = frame.registers()
        names = self._architecture.register_names
        words = (known.get(f"r{name}", known.get(name, word)) for name, word in zip(names, regs.words))
        return type(regs)(tuple(words))
