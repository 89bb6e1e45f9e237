# SPDX-License-Identifier: Apache-2.0
"""The caller of a function that has no unwind table: by what its code says, or not at all.

musl is built without tables, some assembly is, and JIT compilers and Go write none.

* The instructions after the call say how the function returns (``returns``): where its return address
  lies, and the caller's registers.  A call must end at that address, and may lead here.
* The call that a frame is of, and the instructions from there on to where the frame is, say the same; so does
  a function that never returns.
* Code that finds its variables below rbp keeps a frame pointer: what it points to, if it is on this stack.
  So do interpreters, whose code ends in jumps through tables.
* What a signal handler returns to has the registers of the interrupted code above it
  (arch/x86/include/uapi/asm/sigcontext.h).
* A jump to where there is no code, such as a call through NULL: the return address is on top of the stack.
* Outermost are the first instructions of a program, before main; code that returns to address 0; and code
  that returns to nobody, if it was entered without a call (how coroutines and goroutines begin), or has no
  return address but that of a program's first instructions above it.

Only where code cannot be read, since a JIT compiler made it and its process has gone, a frame pointer is
taken as it is; that is a guess, and the walk says so.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

from ebpftrace.stacks.code import Code
from ebpftrace.stacks.copies import PAGE, End, Registers
from ebpftrace.stacks.returns import Return, Value

LARGEST_STACK = 16 << 20
"""Bytes: twice what a main thread may have unless told otherwise.  What lies beyond is another stack."""
LONGEST_ENTRY = 64
"""Bytes of ``_start``: it sets up arguments and calls into the C library."""
_LARGEST_ENTERED = 1 << 12
"""Bytes of a frame that is searched for the call that it is of."""
_MOST_ARGUMENTS = 1 << 12
"""Bytes: a method of Java has at most 255 of 8 (JVM specification 4.11), and the stack stays aligned."""
_WORD = 8
_SIGNAL_CONTEXT = 40
"""Bytes of ``struct ucontext`` before its registers (arch/x86/include/uapi/asm/ucontext.h)."""
_SIGNAL_REGISTERS = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "di", "si", "bp", "bx", "dx", "ax", "cx",
    "sp", "ip",
)  # fmt: skip


_NO_FRAME = Value("sp", 0)
"""What was read after a call is another function's beginning, most likely: the call does not come back."""
_OF_THE_CODE = (End.NO_TABLE, End.NO_CODE, End.NO_CALL)


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


class NoCaller(NamedTuple):
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

    def why_not(self, address: int) -> NoCaller:
        """Why there is no word at ``address``."""
        if not self.start <= address < self.end + LARGEST_STACK:
            return NoCaller(End.OTHER_STACK)
        if address + _WORD <= self.end or not self.is_cut:
            return NoCaller(End.ABSENT)
        return NoCaller(End.COPY, lacking=address + _WORD - self.end)


class Stretch(NamedTuple):
    """A frame without a table."""

    registers: Registers
    copy: Copied
    exact: bool
    """Its pc is that of an instruction, not one after a call."""
    sp_known: bool = True
    """As in ``Caller``."""


def cross(frame: Stretch, entries: Sequence[int], code: Code) -> Union[Caller, NoCaller]:
    """The caller of a frame without unwind table; ``entries`` are where programs begin."""
    registers = frame.registers
    ip = registers.ip
    if _is_entry(ip, entries):
        return NoCaller(End.OUTERMOST)
    if not code.holds(ip - (not frame.exact)):
        return _returned_to(frame, registers.sp, registers.replace(sp=registers.sp + _WORD), code)
    if code.is_signal_return(ip):
        return _interrupted(frame)
    if not code.read(ip, 1):
        return _by_frame_pointer(frame, code, guessed=True)
    way = code.way_back(ip)
    found: Union[Caller, NoCaller] = NoCaller(End.NO_TABLE)
    if len(way.rules) == 1 and (frame.exact or way.rules[0].slot != _NO_FRAME):
        found = _by_rule(frame, way.rules[0], code)
    elif way.rules:
        found = _by_one_of(frame, way.rules, code)
        if isinstance(found, NoCaller) and way.by_pointer:
            # Where its own frame pointer and one way out say the same, that is the way.
            agreeing = [rule for rule in way.rules if _value(frame, rule.slot) == registers.bp + _WORD]
            found = _by_rule(frame, agreeing[0], code) if len(agreeing) == 1 else found
    elif way.by_pointer:
        found = _by_frame_pointer(frame, code, guessed=False)
    if isinstance(found, NoCaller) and found.end in _OF_THE_CODE and frame.sp_known:
        found = _by_entry(frame, code) or found
        if way.never and isinstance(found, NoCaller):
            found = _at_the_bottom(frame, entries, code)
    return found


def _is_entry(address: int, entries: Sequence[int]) -> bool:
    return any(0 <= address - entry < LONGEST_ENTRY for entry in entries)


def _at_the_bottom(frame: Stretch, entries: Sequence[int], code: Code) -> Union[Caller, NoCaller]:
    """Of code that never returns: outermost if no call has left anything above it.

    Or one call alone, made by the first instructions of a program, or of a thread, which never return either.
    """
    copy = frame.copy
    left = []
    for slot in range(frame.registers.sp, copy.end - _WORD + 1, _WORD):
        word = copy.word(slot)
        if word is not None and code.holds(word - 1) and code.follows_call(word):
            left.append((slot, word))
    if copy.is_cut:
        return NoCaller(End.NO_TABLE)
    if not left:
        return NoCaller(End.OUTERMOST)
    slot, word = left[0]
    if len(left) == 1 and (_is_entry(word, entries) or code.way_back(word).never):
        return Caller(frame.registers.replace(ip=word, sp=slot + _WORD), slot=slot, outermost=True)
    return NoCaller(End.NO_TABLE)


def begins_here(address: int, code: Code) -> bool:
    """A stack may begin with this return address: no call ends there, and its code returns to nobody."""
    return not code.follows_call(address) and code.way_back(address).never


def _by_rule(frame: Stretch, rule: Return, code: Code) -> Union[Caller, NoCaller]:
    slot = _value(frame, rule.slot)
    sp = None if rule.sp is None else _value(frame, rule.sp)
    if slot is None:
        return NoCaller(End.NO_TABLE)
    if slot < frame.registers.sp:
        return NoCaller(End.OTHER_STACK)
    restored = {}
    for name, value in rule.registers:
        word = None if value is None else _value(frame, value)
        # What is not known must not be taken for a place on this stack.
        restored[name] = 0 if word is None else word
    registers = frame.registers.replace(**restored, sp=slot + _WORD if sp is None else sp)
    # Who takes its frame down by a frame pointer has not been mistaken for the function after it.
    may_lead_here = rule.slot.register == "bp" or _may_lead_here(frame, slot, code)
    caller = _returned_to(frame, slot, registers, code)
    if isinstance(caller, Caller) and not caller.outermost and not may_lead_here:
        return NoCaller(End.NO_TABLE)
    return caller._replace(sp_known=sp is not None) if isinstance(caller, Caller) else caller


def _by_one_of(frame: Stretch, rules: Sequence[Return], code: Code) -> Union[Caller, NoCaller]:
    """By the one whose caller called the function that the frame is of, and with a frame of that size."""
    callers = (_by_rule(frame, rule, code) for rule in rules)
    possible = [
        caller
        for caller in callers
        if isinstance(caller, Caller)
        and caller.slot is not None
        and code.entered(caller.registers.ip, frame.registers.ip, caller.slot - frame.registers.sp)
    ]
    return possible[0] if len(possible) == 1 else NoCaller(End.NO_TABLE)


def _by_entry(frame: Stretch, code: Code) -> Optional[Caller]:
    """By the call of its function: one that loops for ever does not say how it returns."""
    registers, copy = frame.registers, frame.copy
    for slot in range(registers.sp, min(copy.end, registers.sp + _LARGEST_ENTERED), _WORD):
        word = copy.word(slot)
        if word is None or not code.holds(word - 1) or not code.follows_call(word):
            continue
        rule = code.entered(word, registers.ip, slot - registers.sp)
        if rule is not None:
            caller = _by_rule(frame, rule, code)
            return caller if isinstance(caller, Caller) else None
    return None


def _returned_to(frame: Stretch, slot: int, caller: Registers, code: Code) -> Union[Caller, NoCaller]:
    """To the address that the word at ``slot`` is."""
    address = frame.copy.word(slot)
    if address is None:
        return frame.copy.why_not(slot)
    if address == 0:
        return NoCaller(End.OUTERMOST)
    if not code.holds(address - 1):
        return NoCaller(End.NO_CODE, unknown=address)
    if not code.follows_call(address) and not _is_interpreter(address, slot, caller, frame.copy, code):
        if begins_here(address, code):
            return Caller(caller.replace(ip=address), slot=slot, outermost=True)
        return NoCaller(End.NO_CALL)
    return Caller(caller.replace(ip=address), slot=slot)


def _is_interpreter(address: int, slot: int, caller: Registers, copy: Copied, code: Code) -> bool:
    """Code that was made, and finds its frame by rbp, which points up this stack.

    HotSpot's interpreter pushes the address of what is to be done with a method's result, and jumps to the
    method (src/hotspot/cpu/x86/templateTable_x86.cpp, prepare_invoke): no call ends there.
    """
    return (
        code.is_made(address)
        and slot < caller.bp < copy.end + LARGEST_STACK
        and code.way_back(address).by_pointer
    )


def _may_lead_here(frame: Stretch, slot: int, code: Code) -> bool:
    address = frame.copy.word(slot)
    return address is None or code.may_lead_to(address, frame.registers.ip, slot - frame.registers.sp)


def _value(frame: Stretch, value: Value) -> Optional[int]:
    if value.register == "sp" and not frame.sp_known:
        return None
    word = frame.registers.named(value.register) + value.offset & (1 << 64) - 1
    return frame.copy.word(word) if value.loaded else word


def _by_frame_pointer(frame: Stretch, code: Code, guessed: bool) -> Union[Caller, NoCaller]:
    registers, copy = frame.registers, frame.copy
    bp = registers.bp
    if bp % _WORD or not registers.sp <= bp < copy.end + LARGEST_STACK:
        return NoCaller(End.NO_TABLE)
    saved, address = copy.word(bp), copy.word(bp + _WORD)
    if saved is None or address is None:
        return copy.why_not(bp if saved is None else bp + _WORD)
    if guessed and saved != 0 and not bp < saved < copy.end + LARGEST_STACK:
        return NoCaller(End.NO_TABLE)
    sp = _noted_by_interpreter(frame, address, code) or bp + 2 * _WORD
    caller = _returned_to(frame, bp + _WORD, registers.replace(bp=saved, sp=sp), code)
    return caller._replace(guessed=guessed) if isinstance(caller, Caller) else caller


def _noted_by_interpreter(frame: Stretch, address: int, code: Code) -> Optional[int]:
    """The caller's stack pointer that HotSpot's interpreter has noted below its frame pointer.

    Compiled code passes arguments in registers; what makes that a call of the interpreter puts them below the
    caller's frame (src/hotspot/cpu/x86/sharedRuntime_x86_64.cpp, gen_c2i_adapter), which then begins
    further up than above the return address.
    """
    bp = frame.registers.bp
    noted = frame.copy.word(bp - _WORD)
    if noted is None or noted % _WORD or not code.is_made(frame.registers.ip) or not code.is_made(address):
        return None
    return noted if 0 <= noted - (bp + 2 * _WORD) < _MOST_ARGUMENTS else None


def _interrupted(frame: Stretch) -> Union[Caller, NoCaller]:
    first = frame.registers.sp + _SIGNAL_CONTEXT
    words: dict[str, int] = {}
    for number, name in enumerate(_SIGNAL_REGISTERS):
        word = frame.copy.word(first + number * _WORD)
        if word is None:
            return frame.copy.why_not(first + number * _WORD)
        words[name] = word
    return Caller(frame.registers.replace(**words), exact=True)
