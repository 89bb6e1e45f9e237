# SPDX-License-Identifier: Apache-2.0
"""aarch64: its registers, what its instructions say of calls and returns, and callers where no table says it.

A call leaves the return address in x30, and a function that calls others stores it beside the caller's x29:
the frame record, which x29 points to (AAPCS64 6.4.6).  Where code has no table, its instructions up to the
return say where the address is by then, as on x86-64 (``returns``), but all are four bytes long and few move
the stack pointer.  Where they do not say it, the frame record is taken, and the walk says so: it is a guess.

A return address may be signed in the bits above the address (pointer authentication).  The bits are removed
where what remains lies in code.  Encodings: Arm ARM, C4.1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

from ebpftrace.unwind.architecture import Architecture
from ebpftrace.unwind.code_bytes import CodeBytes, CodePlace, ReadFile
from ebpftrace.unwind.copied import LARGEST_STACK, Caller, CallerNotFound, StackFrame
from ebpftrace.unwind.copies import AARCH64_ADDRESS, End, Registers

REGISTER_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate", "orig_x0")
"""How ``struct pt_regs`` begins (arch/arm64/include/asm/ptrace.h); the number of the system call is next."""
_WORDS = struct.Struct(f"<{len(REGISTER_NAMES)}Q8x")
_INDEX = {name: number for number, name in enumerate(REGISTER_NAMES)}
_OTHER_NAMES = {"ip": "pc", "bp": "x29"}
_MODE_32_BIT = 0x10
"""PSR_MODE32_BIT (arch/arm64/include/uapi/asm/ptrace.h)."""
_WORD_MASK = (1 << 64) - 1
_WORD = 8
_INSTRUCTION = 4
_LONGEST_ENTRY = 64
_MOST_INSTRUCTIONS = 400
_MOST_BEFORE_EXIT = 8
_SIGNAL_RETURN = bytes.fromhex("681180d2010000d4")
"""mov x8, #139; svc #0: what a signal handler returns to (rt_sigreturn), without having been called."""
_SVC = 0xD4000001
_EXITS = frozenset({0xD2800BA8, 0x52800BA8, 0xD2800BC8, 0x52800BC8})
"""mov x8 or w8, #93 and #94: exit and exit_group (include/uapi/asm-generic/unistd.h)."""
_FP, _LR, _SP = 29, 30, 31


class Aarch64Registers(Registers):
    """``struct pt_regs`` of arm64; ``ip`` and ``bp`` are pc and x29."""

    __slots__ = ()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Aarch64Registers:
        """Raises struct.error if ``raw`` is not of its size, 288 bytes."""
        return cls(_WORDS.unpack(raw))

    def to_bytes(self) -> bytes:
        """The layout of the kernel, 288 bytes."""
        return _WORDS.pack(*self.words)

    @property
    def ip(self) -> int:
        """The program counter."""
        return self.words[_INDEX["pc"]]

    @property
    def sp(self) -> int:
        """The stack pointer."""
        return self.words[_INDEX["sp"]]

    @property
    def bp(self) -> int:
        """The address of the frame record."""
        return self.words[_FP]

    @property
    def is_64_bit(self) -> bool:
        """Taken in 64-bit code."""
        return not self.words[_INDEX["pstate"]] & _MODE_32_BIT

    def named(self, name: str) -> int:
        """A register by its name in REGISTER_NAMES."""
        return self.words[_INDEX[_OTHER_NAMES.get(name, name)]]

    def replace(self, **changed: int) -> Aarch64Registers:
        """The same registers but for those named; a value is taken modulo 2^64."""
        words = list(self.words)
        for name, word in changed.items():
            words[_INDEX[_OTHER_NAMES.get(name, name)]] = word & _WORD_MASK
        return Aarch64Registers(tuple(words))


class Place(NamedTuple):
    """An address: a register's value where the frame is, plus an offset."""

    register: int
    offset: int


class Return(NamedTuple):
    """How code returns."""

    link: Optional[Place]
    """Where the return address is; None: in x30."""
    sp: Place
    """The caller's stack pointer."""
    frame: Optional[Place]
    """Where the caller's x29 is; None: in x29."""


class _State(NamedTuple):
    """What is known on one way through the instructions."""

    at: int
    sp: Place
    link: Optional[Place]
    has_link: bool
    """x30 is the return address, or was loaded from ``link``."""
    frame: Optional[Place]
    has_frame: bool
    """Likewise of x29."""
    highest: int = 0
    """Of the offsets that the stack pointer has had: what lies below may be overwritten by then."""


class Aarch64Code(CodeBytes):
    """Code of aarch64."""

    def __init__(self, places: Sequence[CodePlace], read_file: ReadFile) -> None:
        super().__init__(places, read_file)
        self._returns: dict[tuple[int, bool], Optional[Return]] = {}

    def stripped(self, word: int) -> int:
        """A return address without its signature; any other word as it is."""
        address = word & AARCH64_ADDRESS
        return address if address != word and self.contains(address - 1) else word

    def follows_call(self, address: int) -> bool:
        """A call ends at ``address``, or a signal handler returns there; True where nothing can be read."""
        if address % _INSTRUCTION or not self.contains(address - 1):
            return False
        before = self.read(address - _INSTRUCTION, _INSTRUCTION)
        if len(before) < _INSTRUCTION or self.read(address, len(_SIGNAL_RETURN)) == _SIGNAL_RETURN:
            return True
        return _is_call(int.from_bytes(before, "little"))

    def begins_here(self, address: int) -> bool:
        """A stack may begin with this return address: no call ends there, and its code only exits."""
        return not self.follows_call(address) and self.exits_at(address)

    def exits_at(self, address: int) -> bool:
        """The code there ends its thread or process, without a branch before."""
        was_exit = False
        for number in range(_MOST_BEFORE_EXIT):
            word = self._instruction(address + number * _INSTRUCTION)
            if word is None or _is_branch(word):
                return False
            if was_exit and word == _SVC:
                return True
            was_exit = was_exit or word in _EXITS
        return False

    def way_back(self, address: int, exact: bool) -> Optional[Return]:
        """How the code at ``address`` returns; None where its ways differ, or do not say it.

        ``exact``: nothing has been called there yet that would have changed x30.
        """
        key = address, exact
        if self.is_made(address):
            return self._way_back(address, exact)
        if key not in self._returns:
            self._shrink(self._returns)
            self._returns[key] = self._way_back(address, exact)
        return self._returns[key]

    def _way_back(self, address: int, exact: bool) -> Optional[Return]:
        found: set[Return] = set()
        ways = [_State(address, Place(_SP, 0), None, exact, None, True)]
        seen: set[_State] = set()
        while ways and len(seen) < _MOST_INSTRUCTIONS:
            state = ways.pop()
            word = None if state in seen else self._instruction(state.at)
            seen.add(state)
            if word is None:
                continue
            if _is_return(word):
                # Who has lost x30 can't return by it: a call that never comes back, and the next function.
                if state.has_link and state.has_frame and _is_above(state):
                    found.add(Return(state.link, state.sp, state.frame))
                continue
            after = state._replace(at=state.at + _INSTRUCTION)
            target = _target(state.at, word)
            if target is not None:
                ways.append(state._replace(at=target))
                if not _is_unconditional(word):
                    ways.append(after)
            elif _is_call(word):
                ways.append(after._replace(has_link=False, link=None))
            elif not _is_branch(word):
                moved = _after(after, word)
                if moved is not None:
                    ways.append(moved)
        return found.pop() if len(found) == 1 and len(seen) < _MOST_INSTRUCTIONS else None

    def _instruction(self, address: int) -> Optional[int]:
        raw = self.read(address, _INSTRUCTION)
        return int.from_bytes(raw, "little") if len(raw) == _INSTRUCTION else None


def find_caller(
    frame: StackFrame, entries: Sequence[int], code: Aarch64Code
) -> Union[Caller, CallerNotFound]:
    """The caller of a frame without unwind table; ``entries`` are where programs begin."""
    registers, copy = frame.registers, frame.copy
    ip, link = registers.ip, registers.named("x30")
    if any(0 <= ip - entry < _LONGEST_ENTRY for entry in entries):
        return CallerNotFound(End.OUTERMOST)
    if not code.contains(ip - (not frame.exact)):
        # A jump to where there is no code, such as a call through NULL.
        return _returned_to(link, registers, code) if frame.exact else CallerNotFound(End.NO_CODE, unknown=ip)
    if not code.read(ip, _INSTRUCTION):
        return _by_frame_record(frame, code)
    if not frame.exact and code.exits_at(ip):
        return CallerNotFound(End.OUTERMOST)
    way = code.way_back(ip, frame.exact)
    if way is None:
        return _by_frame_record(frame, code)
    sp = _address(registers, way.sp)
    slot = None
    if way.link is not None:
        slot = _address(registers, way.link)
        word = copy.word(slot)
        if word is None:
            return copy.why_not(slot)
        link = word
    bp: Optional[int] = registers.bp
    if way.frame is not None:
        bp = copy.word(_address(registers, way.frame))
    # What is not known must not be taken for a place on this stack.
    return _returned_to(link, registers.replace(sp=sp, bp=bp or 0), code, slot)


def _by_frame_record(frame: StackFrame, code: Aarch64Code) -> Union[Caller, CallerNotFound]:
    registers, copy = frame.registers, frame.copy
    record = registers.bp
    if record % _WORD or not registers.sp <= record < copy.end + LARGEST_STACK:
        return CallerNotFound(End.NO_TABLE)
    slot = record + _WORD
    saved, link = copy.word(record), copy.word(slot)
    if saved is None or link is None:
        return copy.why_not(record if saved is None else slot)
    if saved == 0 and link == 0:
        return CallerNotFound(End.OUTERMOST)
    caller = _returned_to(link, registers.replace(sp=record + 2 * _WORD, bp=saved), code, slot)
    return caller._replace(guessed=True) if isinstance(caller, Caller) else caller


def _returned_to(
    link: int, caller: Registers, code: Aarch64Code, slot: Optional[int] = None
) -> Union[Caller, CallerNotFound]:
    """To ``link``, which is the word at ``slot``, or was in x30."""
    address = code.stripped(link)
    if address == 0:
        return CallerNotFound(End.OUTERMOST)
    if not code.contains(address - 1):
        return CallerNotFound(End.NO_CODE, unknown=address)
    if not code.follows_call(address):
        return CallerNotFound(End.NO_CALL)
    return Caller(caller.replace(ip=address), slot=slot)


def _address(registers: Registers, place: Place) -> int:
    return (registers.sp if place.register == _SP else registers.bp) + place.offset & _WORD_MASK


def _is_above(state: _State) -> bool:
    """Nothing is taken from below the stack pointer: that would be what the next function's code does."""
    places = (state.sp, state.link, state.frame)
    return all(place is None or place.register != _SP or place.offset >= 0 for place in places)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def _is_call(word: int) -> bool:
    """BL, BLR, and BLR with authentication."""
    return word >> 26 == 0b100101 or word & 0xFFFFFC1F == 0xD63F0000 or word & 0xFEFFF800 == 0xD63F0800


def _is_return(word: int) -> bool:
    """RET by x30, also with authentication."""
    return word in (0xD65F03C0, 0xD65F0BFF, 0xD65F0FFF)


def _is_branch(word: int) -> bool:
    """All that may go on elsewhere, or nowhere, but for a system call."""
    is_udf = word >> 16 == 0
    is_exception = word & 0xFF000000 == 0xD4000000 and word != _SVC
    return is_udf or is_exception or word >> 25 == 0b1101011 or _target(0, word) is not None or _is_call(word)


def _is_unconditional(word: int) -> bool:
    return word >> 26 == 0b000101


def _target(at: int, word: int) -> Optional[int]:
    """Where a direct branch that is no call leads: B, B.cond, CBZ, TBZ and the like."""
    if _is_unconditional(word):
        return at + 4 * _signed(word & 0x3FFFFFF, 26)
    if word & 0xFF000000 == 0x54000000 or word & 0x7E000000 == 0x34000000:
        return at + 4 * _signed(word >> 5 & 0x7FFFF, 19)
    if word & 0x7E000000 == 0x36000000:
        return at + 4 * _signed(word >> 5 & 0x3FFF, 14)
    return None


def _after(state: _State, word: int) -> Optional[_State]:
    """What is known after an instruction that does not branch; None where the stack pointer is not."""
    base, first = word >> 5 & 31, word & 31
    if word & 0x3A000000 == 0x28000000:  # a pair is loaded or stored
        vector, size = word >> 26 & 1, word >> 30
        scale = 4 << size if vector else 8 if size == 2 else 4
        pair = () if vector or size != 2 else (first, word >> 10 & 31)
        offset = scale * _signed(word >> 15 & 0x7F, 7)
        return _accessed(state, base, offset, word >> 23 & 3, bool(word >> 22 & 1), pair)
    if word & 0x3B200000 == 0x38000000:  # one, at an offset of any kind but by a register
        index = {1: 1, 3: 3}.get(word >> 10 & 3, 2)
        is_load = bool(word >> 22 & 3)
        single = () if word >> 26 & 1 else (first,)
        return _accessed(state, base, _signed(word >> 12 & 0x1FF, 9), index, is_load, single)
    if word & 0xFFC00000 == 0xF9400000:
        return _accessed(state, base, 8 * (word >> 10 & 0xFFF), 2, True, (first,))
    if word & 0x3B000000 == 0x39000000 and not word >> 22 & 3:  # a store at an unsigned offset
        return state
    if word & 0xBF800000 == 0x91000000 or word & 0xFF800000 == 0xD1000000:
        amount = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
        return _added(state, first, base, -amount if word >> 30 & 1 else amount)
    if first == _SP and (
        word & 0xBFE00000 == 0x8B200000 or word & 0xFF800000 in (0x92000000, 0xB2000000, 0xD2000000)
    ):
        return None  # the stack pointer, by a register or a mask
    if word & 0xFFFFF01F == 0xD503201F:
        return state  # hints: nothing, or the signing and checking of x30
    return _written(state, first)


def _added(state: _State, to: int, base: int, amount: int) -> Optional[_State]:
    if to != _SP:
        return _written(state, to)
    if base == _SP:
        return _moved(state, state.sp._replace(offset=state.sp.offset + amount))
    if base == _FP and state.has_frame and state.frame is None:
        return _moved(state, Place(_FP, amount))
    return None


def _moved(state: _State, sp: Place) -> _State:
    highest = max(state.highest, sp.offset) if sp.register == _SP else state.highest
    return state._replace(sp=sp, highest=highest)


def _accessed(
    state: _State, base: int, offset: int, index: int, is_load: bool, registers: tuple[int, ...]
) -> Optional[_State]:
    """After a load or store; ``index`` is 1 where the base is moved after it, 3 where before it."""
    origin = state.sp if base == _SP else None
    if base == _FP and state.has_frame and state.frame is None:
        origin = Place(_FP, 0)
    before = state
    if index in (1, 3):
        state = (
            _moved(state, state.sp._replace(offset=state.sp.offset + offset))
            if base == _SP
            else _written(state, base)
        )
    if not is_load:
        return state
    for number, register in enumerate(registers):
        place = None
        if origin is not None:
            place = Place(origin.register, origin.offset + (0 if index == 1 else offset) + number * _WORD)
            if place.register == _SP and place.offset < before.highest:
                place = None
        if register == _LR:
            state = state._replace(link=place, has_link=place is not None)
        elif register == _FP:
            state = state._replace(frame=place, has_frame=place is not None)
    return state


def _written(state: _State, register: int) -> _State:
    if register == _LR:
        return state._replace(has_link=False, link=None)
    if register == _FP:
        return state._replace(has_frame=False, frame=None)
    return state


AARCH64 = Architecture(
    registers=Aarch64Registers,
    register_names=REGISTER_NAMES,
    registers_size=_WORDS.size,
    address_space=1 << 52,
    code=Aarch64Code,
    find_caller=find_caller,
    pushes_return_address=False,
    signs_return_addresses=True,
)
