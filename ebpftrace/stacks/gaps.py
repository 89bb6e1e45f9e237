"""The caller of a function that has no unwind table: known in one case, guessed in the others.

* glibc ends the table of ``clone`` and ``clone3`` just before their ``syscall`` instruction (sysdeps/unix/
  sysv/linux/x86_64/clone3.S, "End FDE now, because in the child the unwind info will be wrong"); the return
  address is on top of the stack.  Go's and musl's bare system calls leave it there as well.  Known.
* musl is built without tables, and so is some assembly: the first word up the stack that follows a call
  which may have led here.
* JIT compilers, the code that V8 builds into node, and Go keep frame pointers: what rbp points to, if it is
  on this stack and holds the address after a call.  Code says that it keeps them by how its functions begin.
* We are in the first instructions of a program, before main: the outermost frame.  Known.
* Methods that OpenJDK compiles save their caller's rbp and then use it for data: the nearest word that is a
  frame pointer with a return address above it.
* A saved rbp of 0 beside a return address that follows no call: that is the outermost frame.  So Go begins
  its goroutines (runtime.goexit).
* rbp is 0 and no return address is left on the stack: the outermost frame, as the x86-64 psABI
  marks it ("initial stack and register state").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Callable, NamedTuple, Optional, Union

from ebpftrace.stacks.callsites import LONGEST, call_before
from ebpftrace.stacks.copies import Registers

ReadCode = Callable[[int, int], bytes]
"""(address, count) -> those bytes of code, empty where no file is mapped (JIT code)."""
Region = Callable[[int], Optional[int]]
"""address -> which piece of executable memory it lies in, None for none."""

NEAR = 64
"""Words searched for the caller: functions without tables have small frames."""
LARGEST_FRAME = 1 << 20
"""Bytes; an rbp further beyond the copy is data."""
LONGEST_FUNCTION = 1 << 14
LONGEST_ENTRY = 64
"""Bytes of ``_start``: it sets up arguments and calls into the C library."""
_WORDS_OF_TRAMPOLINE = 2
"""CPython's: sub $8,%rsp; call *%rcx (Python/asm_trampoline.S)."""
_WORD = 8
_PAGE = 4096
_PROLOGUES = (
    bytes.fromhex("554889e5"),  # push %rbp; mov %rsp,%rbp: compilers, V8, Go from 1.21 on
    bytes.fromhex("48896c24"),  # mov %rbp,n(%rsp): Go before it
)
_ENDBR64 = bytes.fromhex("f30f1efa")
_JUMPS_OF_PLT = (bytes.fromhex("ff25"), bytes.fromhex("f2ff25"))
"""jmp *slot(%rip), with or without bnd: x86-64 psABI, procedure linkage table."""
_SIGNAL_RETURN = bytes.fromhex("48c7c00f0000000f05")
"""mov $15, %rax; syscall: what a signal handler returns to (rt_sigreturn), without having been called."""


class Caller(NamedTuple):
    """Registers of the calling frame."""

    return_address: int
    sp: int
    bp: int
    guessed: bool
    outermost: bool = False
    """It has no caller itself."""


class NoCaller(NamedTuple):
    """Why there is no going on."""

    outermost: bool
    cut: bool
    """The copy may just be too short."""
    unknown: Optional[int] = None
    """The return address there would be, if code were known to lie there: a JIT compiler's newest."""


@dataclass(frozen=True)
class Stretch:
    """A frame without a table: its registers, and the copy [start, start + len(memory))."""

    regs: Registers
    start: int
    memory: bytes
    in_system_call: bool

    def word(self, address: int) -> Optional[int]:
        """The word of the copy at ``address``, None outside of it."""
        at = address - self.start
        if at < 0 or at + _WORD > len(self.memory):
            return None
        return int(struct.unpack_from("<Q", self.memory, at)[0])

    def points_up(self, here: int, word: int) -> bool:
        """The word is an address further up this stack, and not further than its frames are large."""
        return word % _WORD == 0 and here <= word < self.start + len(self.memory) + LARGEST_FRAME

    def at(self, bp: int) -> Stretch:
        """The same with another frame pointer."""
        return replace(self, regs=self.regs.replace(self.regs.ip, self.regs.sp, bp))


def cross(frame: Stretch, entries: frozenset[int], region: Region, code: ReadCode) -> Union[Caller, NoCaller]:
    """The caller of a frame without unwind table; ``entries`` are where programs begin."""
    regs = frame.regs
    if any(regs.ip - LONGEST_ENTRY < entry <= regs.ip for entry in entries):
        return NoCaller(outermost=True, cut=False)
    top = frame.word(regs.sp)
    if frame.in_system_call and top is not None and _follows_call(top, region, code):
        return Caller(top, regs.sp + _WORD, regs.bp, guessed=False)
    by_pointer = _by_frame_pointer(frame, region, code)
    readable = bool(code(regs.ip, 1))
    if by_pointer is not None and (not readable or _keeps_frame_pointers(regs.ip, code)):
        return by_pointer
    near = _search(frame, NEAR, region, code)
    if by_pointer is not None and (near is None or by_pointer.sp <= near.sp):
        return by_pointer
    if near is not None and readable:
        return near
    if regs.bp == 0 and _search(frame, len(frame.memory) // _WORD, region, code) is None:
        return NoCaller(outermost=True, cut=False)
    if readable:
        return NoCaller(outermost=False, cut=frame.word(regs.sp + NEAR * _WORD) is None and regs.bp != 0)
    return _cross_unreadable(frame, region, code)


def _cross_unreadable(frame: Stretch, region: Region, code: ReadCode) -> Union[Caller, NoCaller]:
    """From JIT code whose rbp points to no known return address."""
    bp = frame.regs.bp
    saved, return_address = frame.word(bp), frame.word(bp + _WORD)
    if frame.points_up(frame.regs.sp, bp):
        if saved is None or return_address is None:
            return NoCaller(outermost=False, cut=True)
        if frame.points_up(bp, saved) and region(return_address - 1) is None:
            return NoCaller(outermost=False, cut=False, unknown=return_address)

    def readable(address: int) -> Optional[int]:
        return region(address) if code(address, 1) else None

    tiny = _search(frame, _WORDS_OF_TRAMPOLINE, readable, code)
    record = tiny or _frame_record(frame, region, code)
    return record or NoCaller(outermost=False, cut=frame.word(frame.regs.sp + NEAR * _WORD) is None)


def _search(frame: Stretch, words: int, region: Region, code: ReadCode) -> Optional[Caller]:
    """The first word that follows a call which may have led here, else the first that follows any."""
    unlikely = None
    for at in range(frame.regs.sp, frame.regs.sp + words * _WORD, _WORD):
        word = frame.word(at)
        if word is None:
            break
        if _follows_call(word, region, code):
            caller = Caller(word, at + _WORD, frame.regs.bp, guessed=True)
            if _may_lead_to(word, frame.regs.ip, code):
                return caller
            unlikely = unlikely or caller
    return unlikely


def _by_frame_pointer(frame: Stretch, region: Region, code: ReadCode) -> Optional[Caller]:
    bp = frame.regs.bp
    saved, return_address = frame.word(bp), frame.word(bp + _WORD)
    if bp < frame.regs.sp or bp % _WORD or saved is None or return_address is None:
        return None
    outermost = not _follows_call(return_address, region, code)
    if outermost and (saved or region(return_address) is None):
        return None
    return Caller(return_address, bp + 2 * _WORD, saved, guessed=True, outermost=outermost)


def _frame_record(frame: Stretch, region: Region, code: ReadCode) -> Optional[Caller]:
    """The nearest saved rbp that is a frame pointer, with a return address above it."""
    for at in range(frame.regs.sp, frame.regs.sp + NEAR * _WORD, _WORD):
        saved = frame.word(at)
        if saved is None:
            break
        if frame.points_up(at, saved) and _by_frame_pointer(frame.at(saved), region, code):
            caller = _by_frame_pointer(frame.at(at), region, code)
            if caller is not None and not caller.outermost:
                return caller
    return None


def _keeps_frame_pointers(ip: int, code: ReadCode) -> bool:
    for length in (_PAGE, ip % _PAGE):
        before = code(ip - length, length)
        if before:
            return any(prologue in before for prologue in _PROLOGUES)
    return False


def _follows_call(address: int, region: Region, code: ReadCode) -> bool:
    if region(address - 1) is None:
        return False
    if code(address, len(_SIGNAL_RETURN)) == _SIGNAL_RETURN:
        return True
    before = code(address - LONGEST, LONGEST)
    # JIT code cannot be read after the fact: that the address is executable must do.
    return not before or call_before(before) is not None


def _may_lead_to(return_address: int, ip: int, code: ReadCode) -> bool:
    """A direct call of another function leads here only by a tail call; of a PLT entry, anywhere."""
    call = call_before(code(return_address - LONGEST, LONGEST))
    if call is None or call.displacement is None:
        return True
    target = return_address + call.displacement
    if 0 <= ip - target < LONGEST_FUNCTION:
        return True
    entry = code(target, len(_ENDBR64) + 3)
    entry = entry[len(_ENDBR64) :] if entry.startswith(_ENDBR64) else entry
    return entry.startswith(_JUMPS_OF_PLT)
