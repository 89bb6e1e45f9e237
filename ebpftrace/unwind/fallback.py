# SPDX-License-Identifier: Apache-2.0
"""Finds the caller of a function that has no unwind table, by the function's code.

musl and some assembly are built without tables, and JIT compilers and Go write none.  The caller is found by

* the size of the frame that a JVM has for code that it compiled (``hotspot``), if the instructions after the
  call do not contradict;
* the instructions after the call, which show how the function returns (``returns``): the address of the
  return address, and the caller's registers.  A call must end at the return address and be able to lead here;
* the call that entered the function, and the instructions from its start to the current one; this also works
  for functions that never return;
* the frame pointer, if the code addresses its variables below rbp and rbp points into this stack; so do
  interpreters, whose code ends in jumps through tables;
* the registers of the interrupted code, which the kernel stores above the return address of a signal handler
  (arch/x86/include/uapi/asm/sigcontext.h);
* the top of the stack, after a jump to an address without code, such as a call through NULL.

A frame is outermost if it is in the first instructions of a program, before main; if it returns to address 0;
or if its code never returns and it was entered without a call (coroutines and goroutines begin like this), or
has above it no return address but that of a program's first instructions.

Only if the code can't be read, because a JIT compiler made it and its process has exited, the frame pointer
is used without any check; that is a guess, and the walk says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

from ebpftrace.unwind.architecture import Architecture
from ebpftrace.unwind.code import Code
from ebpftrace.unwind.copied import LARGEST_STACK, Caller, CallerNotFound, Copied, StackFrame
from ebpftrace.unwind.copies import REGISTER_NAMES, REGISTERS_SIZE, CompiledCode, End, Registers
from ebpftrace.unwind.returns import Return, Value

LONGEST_ENTRY = 64
"""Bytes of ``_start``: it sets up arguments and calls into the C library."""
_LARGEST_ENTERED = 1 << 12
"""Bytes of a frame in which the return address of the call that entered it is searched."""
_MAX_ARGUMENTS = 1 << 12
"""Bytes of arguments; a method of Java has at most 255 of 8 (JVM specification 4.11), with alignment."""
_WORD = 8
_SIGNAL_CONTEXT = 40
"""Bytes of ``struct ucontext`` before its registers (arch/x86/include/uapi/asm/ucontext.h)."""
_SIGNAL_REGISTERS = (
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "di", "si", "bp", "bx", "dx", "ax", "cx",
    "sp", "ip",
)  # fmt: skip


_NO_FRAME = Value("sp", 0)
"""The rule for code that is most likely the start of another function, after a call that does not return."""
_OF_THE_CODE = (End.NO_TABLE, End.NO_CODE, End.NO_CALL)


def find_caller(frame: StackFrame, entries: Sequence[int], code: Code) -> Union[Caller, CallerNotFound]:
    """The caller of a frame without unwind table; ``entries`` are the entry points of programs."""
    registers = frame.registers
    ip = registers.ip
    if _is_entry(ip, entries):
        return CallerNotFound(End.OUTERMOST)
    if not code.contains(ip - (not frame.exact)):
        return _returned_to(frame, registers.sp, registers.replace(sp=registers.sp + _WORD), code)
    if code.is_signal_return(ip):
        return _interrupted(frame)
    if not code.read(ip, 1):
        return _by_frame_pointer(frame, code, guessed=True)
    compiled = code.compiled(ip) if frame.sp_known and not frame.exact else None
    found: Union[Caller, CallerNotFound] = CallerNotFound(End.NO_TABLE)
    if compiled is not None:
        found = _by_size(frame, compiled, code)
        if isinstance(found, Caller) or found.end not in _OF_THE_CODE:
            return found
    way = code.way_back(ip)
    if len(way.rules) == 1 and (frame.exact or way.rules[0].slot != _NO_FRAME):
        found = _by_rule(frame, way.rules[0], code)
    elif way.rules:
        found = _by_one_of(frame, way.rules, code)
        if isinstance(found, CallerNotFound) and way.by_pointer:
            # Its own frame pointer decides, if it agrees with exactly one of the rules.
            agreeing = [rule for rule in way.rules if _value(frame, rule.slot) == registers.bp + _WORD]
            found = _by_rule(frame, agreeing[0], code) if len(agreeing) == 1 else found
    elif way.by_pointer:
        found = _by_frame_pointer(frame, code, guessed=False)
    if isinstance(found, CallerNotFound) and found.end in _OF_THE_CODE and frame.sp_known:
        found = _by_entry(frame, code) or found
        if way.never and isinstance(found, CallerNotFound):
            found = _at_the_bottom(frame, entries, code)
    return found


def _is_entry(address: int, entries: Sequence[int]) -> bool:
    return any(0 <= address - entry < LONGEST_ENTRY for entry in entries)


def _at_the_bottom(frame: StackFrame, entries: Sequence[int], code: Code) -> Union[Caller, CallerNotFound]:
    """The caller of code that never returns: it is outermost if there is no return address above it.

    A single return address is its caller if it is in the first instructions of a program, or in code that
    never returns either, such as the first instructions of a thread.
    """
    copy = frame.copy
    left = []
    for slot in range(frame.registers.sp, copy.end - _WORD + 1, _WORD):
        word = copy.word(slot)
        if word is not None and code.contains(word - 1) and code.follows_call(word):
            left.append((slot, word))
    if copy.is_cut:
        return CallerNotFound(End.NO_TABLE)
    if not left:
        return CallerNotFound(End.OUTERMOST)
    slot, word = left[0]
    if len(left) == 1 and (_is_entry(word, entries) or code.way_back(word).never):
        return Caller(frame.registers.replace(ip=word, sp=slot + _WORD), slot=slot, outermost=True)
    return CallerNotFound(End.NO_TABLE)


def _by_rule(frame: StackFrame, rule: Return, code: Code) -> Union[Caller, CallerNotFound]:
    slot = _value(frame, rule.slot)
    sp = None if rule.sp is None else _value(frame, rule.sp)
    if slot is None:
        return CallerNotFound(End.NO_TABLE)
    if slot < frame.registers.sp:
        return CallerNotFound(End.OTHER_STACK)
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
        return CallerNotFound(End.NO_TABLE)
    return caller._replace(sp_known=sp is not None) if isinstance(caller, Caller) else caller


def _by_size(frame: StackFrame, compiled: CompiledCode, code: Code) -> Union[Caller, CallerNotFound]:
    """By the size of a frame of HotSpot's compiled code.

    It begins by storing rbp, below the return address, and keeps no other register for its caller
    (src/hotspot/cpu/x86/frame_x86.inline.hpp, sender_for_compiled_frame).  The frame is larger during a call
    for which the stack was aligned, or arguments were put on it.
    """
    sp = frame.registers.sp
    slot = sp + compiled.size - _WORD
    after = code.sp_after_call(frame.registers.ip)
    if after is None or _value(frame, after) not in (sp, slot):
        return CallerNotFound(End.NO_TABLE)
    bp = frame.copy.word(slot - _WORD)
    registers = frame.registers.replace(sp=slot + _WORD, bp=bp or 0, bx=0, r13=0, r14=0)
    return _returned_to(frame, slot, registers, code)


def _by_one_of(frame: StackFrame, rules: Sequence[Return], code: Code) -> Union[Caller, CallerNotFound]:
    """By the one whose caller called the function that the frame is of, and with a frame of that size."""
    callers = (_by_rule(frame, rule, code) for rule in rules)
    possible = [
        caller
        for caller in callers
        if isinstance(caller, Caller)
        and caller.slot is not None
        and code.entered(caller.registers.ip, frame.registers.ip, caller.slot - frame.registers.sp)
    ]
    return possible[0] if len(possible) == 1 else CallerNotFound(End.NO_TABLE)


def _by_entry(frame: StackFrame, code: Code) -> Optional[Caller]:
    """By the call of its function: one that loops for ever does not say how it returns."""
    registers, copy = frame.registers, frame.copy
    if code.is_made(registers.ip):
        return None  # the calls may have been patched since
    for slot in range(registers.sp, min(copy.end, registers.sp + _LARGEST_ENTERED), _WORD):
        word = copy.word(slot)
        if word is None or not code.contains(word - 1) or not code.follows_call(word):
            continue
        rule = code.entered(word, registers.ip, slot - registers.sp)
        if rule is not None:
            caller = _by_rule(frame, rule, code)
            return caller if isinstance(caller, Caller) else None
    return None


def _returned_to(
    frame: StackFrame, slot: int, caller: Registers, code: Code
) -> Union[Caller, CallerNotFound]:
    """To the address that the word at ``slot`` is."""
    address = frame.copy.word(slot)
    if address is None:
        return frame.copy.why_not(slot)
    if address == 0:
        return CallerNotFound(End.OUTERMOST)
    if not code.contains(address - 1):
        return CallerNotFound(End.NO_CODE, unknown=address)
    address = _before_deoptimization(address, caller.sp, frame.copy, code)
    if not code.follows_call(address) and not _is_interpreter(address, slot, caller, frame.copy, code):
        if code.begins_here(address):
            return Caller(caller.replace(ip=address), slot=slot, outermost=True)
        return CallerNotFound(End.NO_CALL)
    return Caller(caller.replace(ip=address), slot=slot)


def _before_deoptimization(address: int, sp: int, copy: Copied, code: Code) -> int:
    """Where a frame of compiled code stands, if a JVM has made it return to the code that deoptimizes it.

    Its own address is then in the frame (src/hotspot/share/runtime/frame.cpp, deoptimize).
    """
    compiled = code.compiled(address)
    if compiled is None or compiled.deoptimized != address:
        return address
    word = copy.word(sp + compiled.original)
    return word if word is not None and compiled.start < word <= compiled.end else address


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


def _may_lead_here(frame: StackFrame, slot: int, code: Code) -> bool:
    address = frame.copy.word(slot)
    return address is None or code.may_lead_to(address, frame.registers.ip, slot - frame.registers.sp)


def _value(frame: StackFrame, value: Value) -> Optional[int]:
    if value.register == "sp" and not frame.sp_known:
        return None
    word = frame.registers.named(value.register) + value.offset & (1 << 64) - 1
    return frame.copy.word(word) if value.loaded else word


def _by_frame_pointer(frame: StackFrame, code: Code, guessed: bool) -> Union[Caller, CallerNotFound]:
    registers, copy = frame.registers, frame.copy
    bp = registers.bp
    if bp % _WORD or not registers.sp <= bp < copy.end + LARGEST_STACK:
        return CallerNotFound(End.NO_TABLE)
    saved, address = copy.word(bp), copy.word(bp + _WORD)
    if saved is None or address is None:
        return copy.why_not(bp if saved is None else bp + _WORD)
    if guessed and saved != 0 and not bp < saved < copy.end + LARGEST_STACK:
        return CallerNotFound(End.NO_TABLE)
    sp = _noted_by_interpreter(frame, address, code) or bp + 2 * _WORD
    caller = _returned_to(frame, bp + _WORD, registers.replace(bp=saved, sp=sp), code)
    return caller._replace(guessed=guessed) if isinstance(caller, Caller) else caller


def _noted_by_interpreter(frame: StackFrame, address: int, code: Code) -> Optional[int]:
    """The caller's stack pointer that HotSpot's interpreter has noted below its frame pointer.

    Compiled code passes arguments in registers; what makes that a call of the interpreter puts them below the
    caller's frame (src/hotspot/cpu/x86/sharedRuntime_x86_64.cpp, gen_c2i_adapter), which then begins
    further up than above the return address.
    """
    bp = frame.registers.bp
    noted = frame.copy.word(bp - _WORD)
    if noted is None or noted % _WORD or not code.is_made(frame.registers.ip) or not code.is_made(address):
        return None
    return noted if 0 <= noted - (bp + 2 * _WORD) < _MAX_ARGUMENTS else None


def _interrupted(frame: StackFrame) -> Union[Caller, CallerNotFound]:
    first = frame.registers.sp + _SIGNAL_CONTEXT
    words: dict[str, int] = {}
    for number, name in enumerate(_SIGNAL_REGISTERS):
        word = frame.copy.word(first + number * _WORD)
        if word is None:
            return frame.copy.why_not(first + number * _WORD)
        words[name] = word
    return Caller(frame.registers.replace(**words), exact=True)


X86_64 = Architecture(
    registers=Registers,
    register_names=REGISTER_NAMES,
    registers_size=REGISTERS_SIZE,
    address_space=1 << 47,
    code=Code,
    find_caller=find_caller,
    pushes_return_address=True,
    signs_return_addresses=False,
)
