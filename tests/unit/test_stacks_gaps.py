# SPDX-License-Identifier: Apache-2.0
"""Finding callers where code has no unwind tables: on stacks and code made up for it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.unwind.code import Call, call_before
from ebpftrace.unwind.copies import PAGE, REGISTER_NAMES, CompiledCode, End, MadePage, Registers

pytest.importorskip("iced_x86")

from ebpftrace.unwind.code import Code
from ebpftrace.unwind.code_bytes import CodePlace
from ebpftrace.unwind.copied import Caller, CallerNotFound, Copied, StackFrame
from ebpftrace.unwind.fallback import find_caller

CODE, MADE = 0x400000, 0x700000
SIZE = 0x10000
STACK = 0x7FFF0000
ENTRY = CODE + 0xF000
FUNCTIONS = {
    # call *%rax, at the end of which the caller of all others stands; then ret.
    0x0800: "ffd0 c3",
    # rt_sigreturn
    0x0900: "48c7c00f0000000f05",
    # push %rbx; sub $32,%rsp; call *%rsi; add $32,%rsp; pop %rbx; ret
    0x1000: "53 4883ec20 ffd6 4883c420 5b c3",
    # push %rbp; mov %rsp,%rbp; movq $0,-8(%rbp); call *%rsi; mov -8(%rbp),%rax; jmp *%rax
    0x1100: "55 4889e5 48c745f800000000 ffd6 488b45f8 ffe0",
    # The same as code that is left by a jump through a table, without a frame pointer.
    0x1200: "53 4883ec20 ffd6 ffe0",
    # call *%rsi, which does not come back; then another function: push %rbx; call *%rax; pop %rbx; ret
    0x1300: "50 ffd6",
    0x1303: "53 ffd0 5b c3",
    # call 0x1300
    0x1400: "e8 fbfeffff c3",
    # for (;;) call *%rsi
    0x1500: "53 4883ec20 ffd6 ebfc",
    # call 0x1500
    0x1600: "e8 fbfeffff c3",
    # xor %edi,%edi; call *%rax; hlt: what a coroutine returns to
    0x1700: "31ff ffd0 f4",
    # mov $60,%eax; syscall
    0x1800: "ffd1 b83c000000 0f05",
    # push %rbp; mov %rsp,%rbp; call *%rsi; pop %rcx of what it pushed: leave; pop %rcx; lea 8(%r15),%rsp;
    # push %rcx; ret
    0x1900: "55 4889e5 ffd6 c9 59 498d6708 51 c3",
    # the same, but add %rbx,%rsp
    0x1A00: "55 4889e5 ffd6 c9 59 4801dc 51 c3",
    # Two ways out, which drop 8 bytes, or as many as %rbx says.
    0x1C00: "55 4889e5 ffd6 85c0 7504 c9 c20800 c9 59 4801dc 51 c3",
    # push %rbp; sub $32,%rsp; for (;;) if (call *%rsi) { add $32,%rsp; pop %rbp; jmp 0x1E00 }
    0x1D00: "55 4883ec20 ffd6 85c0 74fa 4883c420 5d e9ec000000",
    # pop %rdx; jmp *%rax: the handler of an exception has taken the return address
    0x1E00: "5a ffe0",
    # push %rbp; mov %rsp,%rbp; sub $32,%rsp; call *%rsi; if (-8(%rbp) != 1) { add $32,%rsp; pop %rbp; ret }
    # call *%rcx, which does not come back; then another function: ret
    0x2000: "55 4889e5 4883ec20 ffd6 807df801 7406 4883c420 5d c3 ffd1 c3",
    # call 0xA000
    0x1F00: "e8 fb800000 c3",
    # push %rbp; mov %rsp,%rbp; mov 8(%rdi),%rax; pop %rbp; jmp *%rax
    0xA000: "55 4889e5 488b4708 5d ffe0",
    # push %rbx; sub $32,%rsp; call *%rsi; mov %rbp,8(%rsp); mov 8(%rsp),%rbp; add $32,%rsp; pop %rbx; ret
    0x2100: "53 4883ec20 ffd6 48896c2408 488b6c2408 4883c420 5b c3",
    # the same, but movups %xmm0,(%rsp) in between
    0x2200: "53 4883ec20 ffd6 48896c2408 0f110424 488b6c2408 4883c420 5b c3",
    # push %rbx; sub $32,%rsp; if (!call *%rsi) { call *%rax; no instruction } add $32,%rsp; pop %rbx; ret
    0x2300: "53 4883ec20 ffd6 7503 ffd0 06 4883c420 5b c3",
    # call 0x8000
    0x1B00: "e8 fb640000 c3",
    # sub $40,%rsp; for (;;) call *%rsi
    0x2400: "4883ec28 ffd6 ebfc",
    # call *%rsi; add $40,%rsp; test %eax,(%rip); jne to int3; ret: what is compiled for a safepoint
    0x2410: "ffd6 4883c428 850500000000 7501 c3 cc",
    # sub $8,%rsp; call *%rsi; add $8,%rsp; jmp to ud2
    0x2430: "4883ec08 ffd6 4883c408 eb02 9090 0f0b",
    # call *%rsi; push %rax; call *%rdi; ud2
    0x2440: "ffd6 50 ffd7 0f0b",
    # call *%rsi; add $40,%rsp; ret
    0x2500: "ffd6 4883c428 c3",
    # call the next but one; jmp past it; lea 8(%rsp),%rax; call *%rsi; movq $0,(%r15); ret
    0x2600: "e802000000 eb0f 488d442408 ffd6 49c70700000000 c3 c9 c3",
}
CALLED = CODE + 0x802
COMPILED = (
    CompiledCode(MADE + 0x2400, MADE + 0x2480, 48, 0, 0),
    CompiledCode(MADE + 0x2500, MADE + 0x2580, 48, MADE + 0x2570, 24),
)
"""Frames of five words below the return address."""


def image() -> bytes:
    code = bytearray(b"\xcc" * SIZE)
    for at, text in FUNCTIONS.items():
        raw = bytes.fromhex(text)
        code[at : at + len(raw)] = raw
    return bytes(code)


IMAGE = image()


def compiled_in(page: int) -> tuple[CompiledCode, ...]:
    return tuple(one for one in COMPILED if page < one.end and one.start < page + PAGE)


def made_up_code(is_readable: bool = True) -> Code:
    places = [CodePlace(CODE, CODE + SIZE, 0, 0), CodePlace(MADE, MADE + SIZE, None, 0)]
    code = Code(places, lambda _file, offset, count: IMAGE[offset : offset + count])
    if is_readable:
        pages = range(0, SIZE, PAGE)
        code.made({MADE + at: MadePage(IMAGE[at : at + PAGE], compiled_in(MADE + at)) for at in pages})
    return code


def registers(ip: int, **others: int) -> Registers:
    values = {"ip": ip, "sp": STACK, "bp": 0x1234, **others}
    return Registers(tuple(values.get(name, 0) for name in REGISTER_NAMES))


def find(
    ip: int, *words: int, readable: bool = True, missing: int = 0, cut: bool = False, **others: int
) -> Caller | CallerNotFound:
    memory = struct.pack(f"<{len(words)}Q", *words)
    frame = StackFrame(registers(ip, **others), Copied(STACK, memory, missing, cut), exact=False)
    return find_caller(frame, [ENTRY], made_up_code(readable))


def place(found: Caller | CallerNotFound) -> tuple[int, int, int]:
    assert isinstance(found, Caller), found
    assert not found.guessed
    return found.registers.ip, found.registers.sp, found.registers.bp


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


def test_the_frame_is_as_large_as_the_code_says() -> None:
    """Whatever lies in it that could be a return address, too."""
    stale = CALLED
    found = find(CODE + 0x1007, stale, stale, stale, stale, 77, CALLED, bx=1)
    assert place(found) == (CALLED, STACK + 48, 0x1234)
    assert isinstance(found, Caller)
    assert found.registers.named("bx") == 77
    assert found.slot == STACK + 40


def test_what_will_be_stored_is_not_read_from_the_stack_as_it_is_now() -> None:
    """HotSpot's interpreter saves and restores all registers by mov."""
    words = 0, 0xBAD, 0, 0, 0xB, CALLED
    assert place(find(CODE + 0x2107, *words, bp=0x77)) == (CALLED, STACK + 48, 0x77)
    # Nobody knows what was stored: it is no place on this stack.
    assert place(find(CODE + 0x2207, *words, bp=0x77)) == (CALLED, STACK + 48, 0)


def test_a_way_that_ends_in_no_instruction_is_left_out() -> None:
    words = 0, 0, 0, 0, 0xB, CALLED
    assert place(find(CODE + 0x2307, *words)) == (CALLED, STACK + 48, 0x1234)


def test_without_a_call_at_its_return_address_nothing_is_shown() -> None:
    assert find(CODE + 0x1007, 0, 0, 0, 0, 77, CODE + 0x700, CALLED) == CallerNotFound(End.NO_CALL)
    beyond = MADE + SIZE + 0x20
    assert find(CODE + 0x1007, 0, 0, 0, 0, 77, beyond) == CallerNotFound(End.NO_CODE, unknown=beyond)


def test_a_call_that_cannot_lead_here_is_no_caller() -> None:
    assert find(CODE + 0x1007, 0, 0, 0, 0, 77, CODE + 0x1B05) == CallerNotFound(End.NO_TABLE)


def test_of_two_ways_out_the_one_that_the_frame_pointer_agrees_with_is_taken() -> None:
    way = CODE + 0x200A
    words = [*[0] * 4, 0x77, CALLED]
    assert place(find(way, *words, bp=STACK + 0x20)) == (CALLED, STACK + 0x30, 0x77)
    assert find(way, *words, bp=STACK + 0x18) == CallerNotFound(End.NO_TABLE)


def test_a_call_of_what_calls_another_last_by_a_register_may_lead_anywhere() -> None:
    # Not within the longest function of where the call leads.
    assert place(find(CODE + 0x1007, *[0] * 4, 0x77, CODE + 0x1F05))[0] == CODE + 0x1F05


def test_code_that_finds_its_variables_by_rbp_keeps_a_frame_pointer() -> None:
    words = (CALLED, 0, 55, CALLED, 0)
    assert place(find(CODE + 0x110E, *words, bp=STACK + 16)) == (CALLED, STACK + 32, 55)
    assert find(CODE + 0x110E, *words, bp=STACK - 16) == CallerNotFound(End.NO_TABLE)
    assert find(CODE + 0x110E, *words, bp=STACK + 12) == CallerNotFound(End.NO_TABLE)


def test_javas_interpreter_stores_the_stack_pointer_of_its_caller() -> None:
    """Compiled code called it: its arguments lie between the return address and the caller's frame."""
    way = MADE + 0x110E, MADE + 0x802
    words = [0, 0, STACK + 0x40, STACK + 0x70, way[1], 7, 8, 9, 0]
    assert place(find(way[0], *words, bp=STACK + 0x18)) == (way[1], STACK + 0x40, STACK + 0x70)
    # Only among code that is made at run time, and only a place above the return address.
    assert place(find(CODE + 0x110E, *words, bp=STACK + 0x18))[1] == STACK + 0x28
    words[2] = STACK + 0x20
    assert place(find(way[0], *words, bp=STACK + 0x18))[1] == STACK + 0x28


def test_code_that_does_not_say_how_it_returns_is_where_a_stack_is_cut() -> None:
    assert find(CODE + 0x1207, *[CALLED] * 40, bp=STACK + 16) == CallerNotFound(End.NO_TABLE)


def test_a_call_that_does_not_come_back_is_not_followed_into_the_next_function() -> None:
    """Its own caller's call tells how large the frame is."""
    assert place(find(CODE + 0x1303, CALLED, CODE + 0x1405, CALLED))[:2] == (CODE + 0x1405, STACK + 16)
    assert find(CODE + 0x1303, CALLED, CALLED, CALLED) == CallerNotFound(End.NO_TABLE)


def test_a_function_that_never_returns_is_found_by_the_call_of_it() -> None:
    stale = CODE + 0x1605
    found = find(CODE + 0x1507, stale, stale, 0, 0, 77, stale, CALLED)
    assert place(found)[:2] == (CODE + 0x1605, STACK + 48)


@pytest.mark.parametrize("base", [CODE, MADE])
def test_a_loop_that_only_an_exception_leaves_is_as_large_as_that_takes_down(base: int) -> None:
    way = base + 0x1D07
    assert place(find(way, *[0] * 4, 0x77, CALLED, 9)) == (CALLED, STACK + 0x30, 0x77)


def test_a_signal_handler_returns_to_the_interrupted_code() -> None:
    words = [0] * 40
    context = dict(zip(("r15", "di", "si", "bp", "bx", "dx", "ax", "cx", "sp", "ip"), range(100, 110)))
    words[5 + 7 : 5 + 17] = context.values()
    found = find(CODE + 0x900, *words)
    assert isinstance(found, Caller)
    assert found.exact
    assert {name: found.registers.named(name) for name in context} == context


def test_a_jump_to_nowhere_has_its_return_address_on_top() -> None:
    memory = struct.pack("<2Q", CALLED, 5)
    frame = StackFrame(registers(0), Copied(STACK, memory), exact=True)
    assert place(find_caller(frame, [ENTRY], made_up_code()))[:2] == (CALLED, STACK + 8)


@pytest.mark.parametrize("begins", [0x1700])
def test_a_coroutine_begins_where_nothing_was_called_and_returns_to_nobody(begins: int) -> None:
    found = find(CODE + 0x1007, 0, 0, 0, 0, 77, CODE + begins, CALLED)
    assert isinstance(found, Caller)
    assert found.outermost
    assert found.registers.ip == CODE + begins
    assert find(CODE + 0x1007, 0, 0, 0, 0, 77, 0, CALLED) == CallerNotFound(End.OUTERMOST)


def test_code_that_never_returns_is_outermost_if_nothing_called_it() -> None:
    assert find(CODE + 0x1802, 1, 2, 3) == CallerNotFound(End.OUTERMOST)
    assert find(CODE + 0x1802, 1, 2, 3, cut=True) == CallerNotFound(End.NO_TABLE)
    assert find(CODE + 0x1802, 1, CALLED, 3) == CallerNotFound(End.NO_TABLE)
    found = find(CODE + 0x1802, 1, ENTRY + 0x20, 3)
    assert isinstance(found, CallerNotFound) or found.outermost


def test_the_first_instructions_of_a_program_have_no_caller() -> None:
    assert find(ENTRY + 16, CALLED) == CallerNotFound(End.OUTERMOST)


def test_v8_drops_arguments_when_it_returns() -> None:
    words = (9, 9, 55, CALLED, 1, 2)
    counted = find(CODE + 0x1906, *words, bp=STACK + 16, r15=STACK + 40)
    assert place(counted) == (CALLED, STACK + 48, 55)
    unknown = find(CODE + 0x1A06, *words, bp=STACK + 16)
    assert place(unknown) == (CALLED, STACK + 32, 55)
    assert isinstance(unknown, Caller)
    assert not unknown.sp_known


def test_ways_that_differ_in_what_they_drop_agree_on_the_caller() -> None:
    found = find(CODE + 0x1C06, 9, 9, 55, CALLED, 1, 2, bp=STACK + 16)
    assert place(found) == (CALLED, STACK + 32, 55)
    assert isinstance(found, Caller)
    assert not found.sp_known


def test_without_a_stack_pointer_only_a_frame_pointer_reports() -> None:
    memory = struct.pack("<8Q", 0, 0, 0, 0, 77, CALLED, 55, CALLED)
    copy = Copied(STACK, memory)
    by_rsp = StackFrame(registers(CODE + 0x1007), copy, exact=False, sp_known=False)
    assert find_caller(by_rsp, [ENTRY], made_up_code()) == CallerNotFound(End.NO_TABLE)
    by_rbp = StackFrame(registers(CODE + 0x110E, bp=STACK + 48), copy, exact=False, sp_known=False)
    assert place(find_caller(by_rbp, [ENTRY], made_up_code()))[:2] == (CALLED, STACK + 64)


def test_made_code_says_how_it_returns_while_it_can_be_read() -> None:
    words = (MADE + 0x802, 0, STACK + 32, CALLED, 77, CALLED)
    assert place(find(MADE + 0x1007, *words, bp=STACK + 16)) == (CALLED, STACK + 48, STACK + 16)
    guess = find(MADE + 0x1007, *words, bp=STACK + 16, readable=False)
    assert isinstance(guess, Caller)
    assert guess.guessed
    assert guess.registers.ip == CALLED
    assert find(MADE + 0x1007, *words, bp=77, readable=False) == CallerNotFound(End.NO_TABLE)


def code_made_of(*pages: str) -> Code:
    """Code that begins at MADE, page by page; an empty one has not been read yet."""
    code = Code([CodePlace(MADE, MADE + len(pages) * PAGE, None, 0)], lambda *_: b"")
    code.made({MADE + number * PAGE: page_of(text) for number, text in enumerate(pages)})
    return code


def page_of(text: str) -> MadePage:
    raw = bytes.fromhex(text)
    return MadePage(raw.ljust(PAGE, b"\xcc") if raw else b"")


def caller_in(code: Code, ip: int, *words: int) -> Caller | CallerNotFound:
    memory = struct.pack(f"<{len(words)}Q", *words)
    return find_caller(StackFrame(registers(ip), Copied(STACK, memory), exact=False), [], code)


def test_what_made_code_says_is_asked_again_when_any_of_its_pages_is_another() -> None:
    """The code at the beginning of the second page jumps back to the end of its function, on the first."""
    calls, jumps_back = "ffd0 4883c410 c3", "ffd0 e9fbefffff"
    words = (7, MADE + 2, MADE + 2)
    code = code_made_of("", jumps_back)
    assert caller_in(code, MADE + PAGE + 2, *words) == CallerNotFound(End.NO_TABLE)
    assert code.lacking == {MADE}
    code.made({MADE: page_of(calls.replace("10", "08"))})
    assert place(caller_in(code, MADE + PAGE + 2, *words))[1] == STACK + 16
    code.made({MADE: page_of(calls)})
    assert place(caller_in(code, MADE + PAGE + 2, *words))[1] == STACK + 24


def test_a_made_function_comes_back_as_it_is_now() -> None:
    """The code at the beginning calls a function of the second page, and then returns."""
    calls, exits, returns = "ffd0 e8f90f0000 4883c410 c3", "b83c000000 0f05", "c3"
    words = (7, 7, MADE + 2)
    code = code_made_of(calls, exits)
    without_caller = caller_in(code, MADE + 2, *words)
    assert isinstance(without_caller, Caller)
    assert without_caller.outermost
    code.made({MADE + PAGE: page_of(returns)})
    called = caller_in(code, MADE + 2, *words)
    assert isinstance(called, Caller)
    assert not called.outermost


@pytest.mark.parametrize("way", [0x2406, 0x2412, 0x2442])
def test_code_that_a_jvm_compiled_has_frames_of_the_size_that_it_says(way: int) -> None:
    """Whether it loops for ever, takes its frame off next, or makes another call with an argument."""
    stale = MADE + 0x802
    found = find(MADE + way, stale, stale, 7, 7, 0x77, MADE + 0x802, bx=STACK + 64)
    assert place(found) == (MADE + 0x802, STACK + 48, 0x77)
    assert isinstance(found, Caller)
    # Compiled code keeps no other register.
    assert found.registers.named("bx") == 0


def test_a_frame_that_is_larger_for_a_call_is_not_taken_for_one_of_its_size() -> None:
    words = [7, 7, 7, 7, 0x77, MADE + 0x802, MADE + 0x802]
    assert find(MADE + 0x2436, *words) == CallerNotFound(End.NO_TABLE)


def test_the_copy_is_too_short_for_a_compiled_frame() -> None:
    assert find(MADE + 0x2406, 0, 0, cut=True) == CallerNotFound(End.COPY, lacking=32)


def test_a_deoptimized_frame_has_its_own_address_in_it() -> None:
    """Its return address was replaced by one that no call is before."""
    words = [7] * 4 + [0x77, MADE + 0x2570, 1, 2, 3, MADE + 0x2502, 0x99, MADE + 0x802]
    found = find(MADE + 0x2406, *words)
    assert place(found) == (MADE + 0x2502, STACK + 48, 0x77)
    words[9] = MADE + 0x2602
    assert isinstance(find(MADE + 0x2406, *words), CallerNotFound)


def test_a_call_within_javas_interpreter_is_found_by_the_call_of_it() -> None:
    """Which is for the address after it alone: its callee stores that for the JVM."""
    found = find(MADE + 0x260E, MADE + 0x2605, 5, 6, bp=STACK + 16)
    assert place(found) == (MADE + 0x2605, STACK + 8, STACK + 16)
    # Not one that leads elsewhere, or to where the stack is not as deep.
    assert find(MADE + 0x260E, MADE + 0x1405, 5) == CallerNotFound(End.NO_TABLE)
    assert find(MADE + 0x260E, MADE + 0x802, 5) == CallerNotFound(End.NO_TABLE)


def test_why_a_word_is_not_there() -> None:
    assert find(CODE + 0x1007, 0, 0, cut=True) == CallerNotFound(End.COPY, lacking=32)
    assert find(CODE + 0x1007, 0, 0) == CallerNotFound(End.ABSENT)
    # Whatever was absent at the end of a copy: nothing so far up is ever copied (Ruby's 1 MiB, by alloca).
    far = find(CODE + 0x110E, 0, 0, bp=STACK + (1 << 20))
    assert far == CallerNotFound(End.COPY, lacking=(1 << 20) - 8)
    page = [0] * 512
    near = StackFrame(
        registers(CODE + 0x1007, sp=STACK + 4096 - 16), Copied(STACK + 4096 - 16, bytes(8192), 1), False
    )
    assert find_caller(near, [ENTRY], made_up_code()) == CallerNotFound(End.ABSENT)
    assert len(page) == 512
    interrupted = find(CODE + 0x110E, 0, 0, bp=STACK + (1 << 30))
    assert interrupted == CallerNotFound(End.NO_TABLE)


@given(
    st.lists(
        st.integers(0, (1 << 64) - 1) | st.sampled_from([CALLED, CODE + 0x1405, STACK + 64]), max_size=40
    ),
    st.integers(0, (1 << 64) - 1) | st.integers(STACK, STACK + 400),
    st.sampled_from([0x1007, 0x110E, 0x1207, 0x1303, 0x1507, 0x1802, 0x1906, 0x1A06]),
)
def test_a_caller_is_always_further_up_the_stack_and_after_a_call(words: list[int], bp: int, at: int) -> None:
    found = find(CODE + at, *words, bp=bp, r15=bp)
    if isinstance(found, Caller) and not found.outermost:
        assert found.slot is not None
        assert STACK <= found.slot <= STACK + 8 * len(words) - 8
        assert struct.pack("<Q", found.registers.ip) == struct.pack(
            "<Q", words[(found.slot - STACK) // 8]
        ) or ((found.slot - STACK) % 8)
        assert found.registers.ip in (CALLED, CODE + 0x1405)


@given(st.binary(max_size=600), st.integers(0, 599))
def test_any_bytes_are_taken_for_code(raw: bytes, at: int) -> None:
    code = Code(
        [CodePlace(CODE, CODE + max(len(raw), 1), 0, 0)], lambda _f, offset, n: raw[offset : offset + n]
    )
    way = code.way_back(CODE + at)
    assert not (way.never and way.rules)
