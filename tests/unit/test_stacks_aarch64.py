# SPDX-License-Identifier: Apache-2.0
"""Callers on aarch64 where no table says it; the instructions are what GNU as makes of the comments."""

from __future__ import annotations

import struct
from typing import Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.unwind.aarch64 import AARCH64, Aarch64Code, Aarch64Registers, Place, Return, find_caller
from ebpftrace.unwind.code_bytes import CodePlace
from ebpftrace.unwind.copied import Caller, CallerNotFound, Copied, StackFrame
from ebpftrace.unwind.copies import End

CODE, SIZE, STACK = 0x400000, 0x1000, 0x7FFF0000
ENTRY = CODE + 0xF00
SIGNED = 0x3C << 48
FP, SP = 29, 31
FUNCTIONS = {
    # blr x1; the caller of all others returns to what follows
    0x00: (0xD63F0020, 0xD65F03C0),
    # mov x8, #222; svc #0; ret
    0x10: (0xD2801BC8, 0xD4000001, 0xD65F03C0),
    # paciasp; stp x29, x30, [sp, #-48]!; mov x29, sp; str x19, [sp, #16]; bl; nop; cbz x0, 1f; mov x0, #1;
    # 1: ldr x19, [sp, #16]; ldp x29, x30, [sp], #48; autiasp; ret
    0x100: (
        0xD503233F, 0xA9BD7BFD, 0x910003FD, 0xF9000BF3, 0x97FFFFF9, 0xD503201F, 0xB4000040, 0xD2800020,
        0xF9400BF3, 0xA8C37BFD, 0xD50323BF, 0xD65F03C0,
    ),
    # sub sp, sp, #0x230; str x30, [sp, #0x220]; bl; ldr x30, [sp, #0x220]; add sp, sp, #0x230; ret
    0x200: (0xD108C3FF, 0xF90113FE, 0x97FFFFEF, 0xF94113FE, 0x9108C3FF, 0xD65F03C0),
    # stp x29, x30, [sp, #-32]!; mov x29, sp; sub sp, sp, x0; bl; mov sp, x29; ldp x29, x30, [sp], #32; retaa
    0x300: (0xA9BE7BFD, 0x910003FD, 0xCB2063FF, 0x97FFFFE8, 0x910003BF, 0xA8C27BFD, 0xD65F0BFF),
    # cbz x0, 2f; ldr x30, [sp], #16; ret; 2: ldr x30, [sp, #16]!; add sp, sp, #16; ret
    0x400: (0xB4000060, 0xF84107FE, 0xD65F03C0, 0xF8410FFE, 0x910043FF, 0xD65F03C0),
    # bl, which does not come back; then another function: stp x29, x30, [sp, #-16]!; ldp ..., #16; ret
    0x500: (0x97FFFFDE, 0xA9BF7BFD, 0xA8C17BFD, 0xD65F03C0),
    # blr x1; mov x8, #93; svc #0: where a thread of musl begins
    0x600: (0xD63F0020, 0xD2800BA8, 0xD4000001),
    # bl; ldur x30, [x29, #-8]; add sp, x29, #16; ret
    0x800: (0x97FFFFDE, 0xF85F83BE, 0x910043BF, 0xD65F03C0),
    # bl; ldp x29, x30, [sp], #80; b 0x920, to a function that stores them again, below where they were:
    # stp x29, x30, [sp, #-48]!; ldp x29, x30, [sp], #48; ret
    0x900: (0x97FFFFDE, 0xA8C57BFD, 0x14000006),
    0x920: (0xA9BD7BFD, 0xA8C37BFD, 0xD65F03C0),
    # cbz x0, 1f; ldr x30, [sp], #16; ret; 1: bl, which does not come back; then another function: ret
    0xA00: (0xB4000060, 0xF84107FE, 0xD65F03C0, 0x97FFFFDE, 0xD65F03C0),
    # mov x8, #139; svc #0: rt_sigreturn
    0x700: (0xD2801168, 0xD4000001),
}  # fmt: skip
RETURN = CODE + 4
"""Where the caller goes on."""


def memory_of_code() -> bytes:
    memory = bytearray(SIZE)
    for at, words in FUNCTIONS.items():
        struct.pack_into(f"<{len(words)}I", memory, at, *words)
    return bytes(memory)


CONTENT = memory_of_code()


def code() -> Aarch64Code:
    return Aarch64Code(
        [CodePlace(CODE, CODE + SIZE, 1, 0)], lambda _, offset, count: CONTENT[offset : offset + count]
    )


def registers(ip: int, sp: int = STACK, bp: int = 0, link: int = 0) -> Aarch64Registers:
    return Aarch64Registers((0,) * 35).replace(ip=ip, sp=sp, bp=bp, x30=link)


def find(
    ip: int, *words: int, exact: bool = False, bp: int = 0, link: int = 0
) -> Union[Caller, CallerNotFound]:
    copy = Copied(STACK, struct.pack(f"<{len(words)}Q", *words))
    return find_caller(StackFrame(registers(ip, STACK, bp, link), copy, exact), [ENTRY], code())


def place(found: Union[Caller, CallerNotFound]) -> tuple[int, int, int]:
    assert isinstance(found, Caller), found
    assert not found.guessed
    return found.registers.ip, found.registers.sp - STACK, found.registers.bp


@pytest.mark.parametrize(
    ("at", "exact", "expected"),
    [
        (0x14, True, Return(None, Place(SP, 0), None)),
        (0x18, False, None),
        (0x114, False, Return(Place(SP, 8), Place(SP, 48), Place(SP, 0))),
        (0x104, True, None),
        (0x20C, False, Return(Place(SP, 0x220), Place(SP, 0x230), None)),
        (0x310, False, Return(Place(FP, 8), Place(FP, 32), Place(FP, 0))),
        (0x400, True, None),
        (0x504, False, None),
        (0x904, False, None),
        (0xA00, False, Return(Place(SP, 0), Place(SP, 16), None)),
        (0x804, False, Return(Place(FP, -8), Place(FP, 16), None)),
    ],
)
def test_instructions_say_how_they_return(at: int, exact: bool, expected: Optional[Return]) -> None:
    assert code().way_back(CODE + at, exact) == expected


def test_a_system_call_returns_by_its_register() -> None:
    assert place(find(CODE + 0x18, exact=True, link=RETURN, bp=7)) == (RETURN, 0, 7)
    assert place(find(CODE + 0x18, exact=True, link=RETURN | SIGNED)) == (RETURN, 0, 0)


def test_a_stored_address_is_taken_from_its_place_without_its_signature() -> None:
    found = find(CODE + 0x114, 5, RETURN | SIGNED, 0, 0, 0, 0)
    assert place(found) == (RETURN, 48, 5)
    assert isinstance(found, Caller)
    assert found.slot == STACK + 8


def test_a_place_beyond_the_copy_is_lacking() -> None:
    copy = Copied(STACK, bytes(64), is_cut=True)
    found = find_caller(StackFrame(registers(CODE + 0x20C), copy, exact=False), [], code())
    assert found == CallerNotFound(End.COPY, lacking=0x220 + 8 - 64)


def test_where_the_ways_differ_the_frame_record_is_a_guess() -> None:
    found = find(CODE + 0x504, 0, 0, STACK + 64, RETURN, bp=STACK + 16)
    assert isinstance(found, Caller)
    assert found.guessed
    assert (found.registers.ip, found.registers.sp, found.registers.bp) == (RETURN, STACK + 32, STACK + 64)
    assert found.slot == STACK + 24
    assert find(CODE + 0x504, 0, 0, bp=STACK) == CallerNotFound(End.OUTERMOST)
    assert find(CODE + 0x504, 0, 0, bp=STACK - 16) == CallerNotFound(End.NO_TABLE)


def test_what_no_call_precedes_is_no_return_address() -> None:
    assert find(CODE + 0x18, exact=True, link=CODE + 0x20) == CallerNotFound(End.NO_CALL)
    assert find(CODE + 0x18, exact=True, link=CODE + 5) == CallerNotFound(End.NO_CALL)
    beyond = CODE + SIZE + 4
    assert find(CODE + 0x18, exact=True, link=beyond) == CallerNotFound(End.NO_CODE, unknown=beyond)


def test_where_stacks_begin() -> None:
    assert find(ENTRY + 8) == CallerNotFound(End.OUTERMOST)
    assert find(CODE + 0x604, RETURN) == CallerNotFound(End.OUTERMOST)
    assert find(CODE + 0x18, exact=True, link=0) == CallerNotFound(End.OUTERMOST)


def test_a_call_through_null_came_from_its_link() -> None:
    assert place(find(0, exact=True, link=RETURN)) == (RETURN, 0, 0)


def test_a_signal_handler_returns_where_nothing_was_called() -> None:
    assert code().follows_call(CODE + 0x700)
    assert not code().follows_call(CODE + 0x704)


@given(st.integers(0, (1 << 64) - 1))
def test_only_what_is_code_without_the_bits_above_loses_them(word: int) -> None:
    stripped = code().stripped(word)
    assert stripped in (word, word & (1 << 48) - 1)
    assert stripped == word or CODE < stripped <= CODE + SIZE


@given(st.binary(max_size=256), st.booleans(), st.integers(0, 1 << 64), st.integers(0, (1 << 64) - 1))
def test_any_code_is_read_in_bounds(instructions: bytes, exact: bool, bp: int, link: int) -> None:
    hostile = Aarch64Code([CodePlace(CODE, CODE + SIZE, 1, 0)], lambda _, at, n: instructions[at : at + n])
    frame = StackFrame(registers(CODE, bp=bp, link=link), Copied(STACK, bytes(64)), exact)
    assert find_caller(frame, [], hostile)


def test_registers_are_the_kernels() -> None:
    raw = struct.pack("<35Qi4x", *range(1, 36), 222)
    regs = AARCH64.registers.from_bytes(raw)
    assert (regs.ip, regs.sp, regs.bp, regs.named("x30")) == (33, 32, 30, 31)
    assert len(regs.to_bytes()) == AARCH64.registers_size == 288
    assert regs.to_bytes()[:280] == raw[:280]
    assert registers(0).is_64_bit
    assert not registers(0).replace(pstate=0x10).is_64_bit
