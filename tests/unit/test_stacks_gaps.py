"""Finding callers where code has no unwind tables: on stacks and code made up for it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.stacks.callsites import Call, call_before
from ebpftrace.stacks.copies import REGISTER_NAMES, Registers
from ebpftrace.stacks.gaps import Caller, NoCaller, Stretch, cross

CODE = 0x400000
SIZE = 0x10000
STACK = 0x7FFF0000
CALL_F = bytes.fromhex("e8") + struct.pack("<i", 0x1000 - 0x505)
"""At CODE + 0x500: calls CODE + 0x1000; returns to CODE + 0x505."""


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("e8 01 00 00 00", Call(1)),
        ("ff d0", Call(None)),  # call *%rax
        ("41 ff d1", Call(None)),  # call *%r9
        ("ff 10", Call(None)),  # call *(%rax)
        ("ff 14 24", Call(None)),  # call *(%rsp)
        ("ff 50 18", Call(None)),  # call *0x18(%rax)
        ("ff 54 24 08", Call(None)),  # call *8(%rsp)
        ("ff 15 00 10 00 00", Call(None)),  # call *0x1000(%rip)
        ("ff 90 00 01 00 00", Call(None)),  # call *0x100(%rax)
        ("ff 94 24 00 01 00 00", Call(None)),  # call *0x100(%rsp)
        ("ff 14 c5 00 10 00 00", Call(None)),  # call *0x1000(,%rax,8)
        ("ff e0", None),  # jmp *%rax
        ("48 89 e5", None),
        ("c3", None),
        ("", None),
    ],
)
def test_call_before(code: str, call: Call | None) -> None:
    raw = bytes.fromhex(code)
    assert call_before(raw) == call
    assert call_before(bytes(7 - min(len(raw), 7)) + raw) == call


@given(st.binary(max_size=16))
def test_call_before_takes_any_bytes(code: bytes) -> None:
    call_before(code)


def read_code(address: int, count: int) -> bytes:
    code = bytearray(SIZE)
    code[0x500:0x505] = CALL_F
    code[0x5000:0x5004] = bytes.fromhex("554889e5")
    code[0x800:0x802] = b"\xff\xd0"
    code[0x900:0x909] = bytes.fromhex("48c7c00f0000000f05")
    return (
        bytes(code[address - CODE : address - CODE + count]) if CODE <= address < CODE + SIZE - count else b""
    )


def registers(ip: int, bp: int, sp: int = STACK) -> Registers:
    values = {"ip": ip, "bp": bp, "sp": sp}
    return Registers(tuple(values.get(name, 0) for name in REGISTER_NAMES))


JIT = 0x700000
"""Code there cannot be read; beyond JIT + SIZE nobody knows of code."""


def region(address: int) -> int | None:
    return next((at for at in (CODE, JIT) if at <= address < at + SIZE), None)


def find(ip: int, bp: int, *words: int, call: bool = False, entries: frozenset[int] = frozenset()) -> object:
    memory = struct.pack(f"<{len(words)}Q", *words)
    frame = Stretch(registers(ip, bp), STACK, memory, call)
    return cross(frame, entries, region, read_code)


def test_a_bare_system_call_has_its_return_address_on_top() -> None:
    assert find(CODE + 0x1010, 99, CODE + 0x802, call=True) == Caller(CODE + 0x802, STACK + 8, 99, False)


def test_a_direct_call_of_another_function_is_stale() -> None:
    found = find(CODE + 0x8010, 99, 1, CODE + 0x505, 2, CODE + 0x802)
    assert found == Caller(CODE + 0x802, STACK + 32, 99, True)


def test_the_nearest_possible_caller_is_taken() -> None:
    found = find(CODE + 0x1010, 99, 1, CODE + 0x802, 2, CODE + 0x505)
    assert found == Caller(CODE + 0x802, STACK + 16, 99, True)


def test_a_tail_call_leaves_only_an_unlikely_caller() -> None:
    assert find(CODE + 0x8010, 99, CODE + 0x505) == Caller(CODE + 0x505, STACK + 8, 99, True)


def test_a_signal_handler_returns_to_code_that_called_nobody() -> None:
    assert find(CODE + 0x1010, 99, CODE + 0x900) == Caller(CODE + 0x900, STACK + 8, 99, True)


def test_a_pointer_into_code_that_follows_no_call_is_not_a_caller() -> None:
    assert find(CODE + 0x1010, 0, CODE + 0x700, CODE) == NoCaller(outermost=True, cut=False)


def test_frame_pointer() -> None:
    found = find(CODE + 0x3000, STACK + 8, 7, STACK + 64, CODE + 0x802)
    assert found == Caller(CODE + 0x802, STACK + 24, STACK + 64, True)


def test_a_frame_pointer_below_the_stack_pointer_is_data() -> None:
    assert find(CODE + 0x3000, STACK - 16, 1, 2) == NoCaller(outermost=False, cut=True)


def test_code_that_keeps_frame_pointers_is_stepped_by_them_past_what_looks_like_a_caller() -> None:
    words = (CODE + 0x802, 0, 0, STACK + 64, CODE + 0x802)
    assert find(CODE + 0x5010, STACK + 24, *words) == Caller(CODE + 0x802, STACK + 40, STACK + 64, True)
    assert find(CODE + 0x3000, STACK + 24, *words) == Caller(CODE + 0x802, STACK + 8, STACK + 24, True)
    assert find(JIT + 0x10, STACK + 24, *words) == Caller(CODE + 0x802, STACK + 40, STACK + 64, True)


def test_compiled_code_that_uses_rbp_for_data_has_saved_its_callers() -> None:
    outer = STACK + 64
    words = (7, STACK + 24, JIT + 0x20, 5, outer, JIT + 0x40, 1, 1, STACK + 128, CODE + 0x802)
    assert find(JIT + 0x10, 0x1234, *words) == Caller(JIT + 0x40, STACK + 48, outer, True)


def test_a_goroutine_begins_where_no_call_was() -> None:
    found = find(CODE + 0x5010, STACK + 8, 1, 0, CODE + 0x700, CODE + 0x802)
    assert found == Caller(CODE + 0x700, STACK + 24, 0, True, outermost=True)


def test_a_caller_in_code_that_nobody_knows_of_is_told() -> None:
    beyond = JIT + SIZE + 0x20
    assert find(JIT + 0x10, STACK + 8, 1, STACK + 64, beyond) == NoCaller(False, False, unknown=beyond)


def test_a_frame_pointer_beyond_the_copy_is_cut() -> None:
    assert find(JIT + 0x10, STACK + 0x8000, *[1] * 80) == NoCaller(outermost=False, cut=True)
    assert find(JIT + 0x10, STACK + (1 << 30), *[1] * 80) == NoCaller(outermost=False, cut=False)


def test_the_first_instructions_of_a_program_have_no_caller() -> None:
    found = find(CODE + 0x510, 99, CODE + 0x802, entries=frozenset([CODE + 0x500]))
    assert found == NoCaller(outermost=True, cut=False)


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=40), st.integers(0, (1 << 64) - 1), st.booleans())
def test_a_caller_is_always_further_up_the_stack(words: list[int], bp: int, call: bool) -> None:
    found = find(CODE + 0x1010, bp, *words, call=call)
    assert isinstance(found, NoCaller) or STACK < found.sp <= STACK + 8 * len(words)  # type: ignore[attr-defined]
