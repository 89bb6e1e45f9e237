# SPDX-License-Identifier: Apache-2.0
"""Frame-pointer walks on copies made by hand, of both machines and of none; what is said of them."""

from __future__ import annotations

import os
import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.capture.layout import REGISTER_BYTES
from ebpftrace.model import StackSource
from ebpftrace.procfs.maps import read_maps
from ebpftrace.unwind.copies import REGISTER_NAMES, REGISTERS_SIZES, Pc, StackCopy
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.frame_pointers import MAX_FRAMES, frame_pointer_walk
from ebpftrace.unwind.modules import CodeRange, Layout
from ebpftrace.unwind.resolve import StackResolver

CODE = 0xAAAA00000000
SP = 0xFFFFE0000000
LAYOUT = Layout((CodeRange(CODE, CODE + 0x10000, "/bin/a", 0, 0, 0),))
SIGNATURE = 0x2A << 49
"""Of a return address, by pointer authentication."""


def aarch64(memory: bytes, pc: int, x29: int, x30: int) -> StackCopy:
    registers = struct.pack("<31Q5Q", *range(29), x29, x30, SP, pc, 0x60001000, 0, 222)
    return StackCopy(1, 1, 1, registers, memory)


def x86_64(memory: bytes, pc: int, bp: int) -> StackCopy:
    words = {**dict.fromkeys(REGISTER_NAMES, 0), "ip": pc, "sp": SP, "bp": bp, "cs": 0x33}
    return StackCopy(1, 1, 1, struct.pack("<21Q", *words.values()), memory)


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


CHAIN = words(7, 7, SP + 48, CODE + 0x20, 7, 7, SP + 64, CODE + 0x30, 0, 0)
"""Two frames that lead to code, and the outermost record."""


def test_frame_records_of_aarch64_are_followed() -> None:
    copy = aarch64(CHAIN, CODE + 8, SP + 16, CODE + 0x20)
    assert frame_pointer_walk(copy, LAYOUT) == (
        Pc(CODE + 8, True),
        Pc(CODE + 0x20, False),
        Pc(CODE + 0x30, False),
    )


def test_the_caller_of_a_function_without_a_record_is_in_x30() -> None:
    copy = aarch64(CHAIN, CODE + 8, SP + 16, CODE + 0x10)
    assert [pc.address - CODE for pc in frame_pointer_walk(copy, LAYOUT)] == [8, 0x10, 0x20, 0x30]
    nowhere = aarch64(CHAIN, CODE + 8, SP + 16, 12345)
    assert [pc.address - CODE for pc in frame_pointer_walk(nowhere, LAYOUT)] == [8, 0x20, 0x30]


def test_signed_return_addresses_are_known() -> None:
    signed = words(SP + 16, SIGNATURE | CODE + 0x20, 0, 0)
    copy = aarch64(signed, CODE + 8, SP, SIGNATURE | CODE + 0x10)
    assert [pc.address - CODE for pc in frame_pointer_walk(copy, LAYOUT)] == [8, 0x10, 0x20]


def test_frame_pointers_of_x86_64_are_followed() -> None:
    copy = x86_64(CHAIN, CODE + 8, SP + 16)
    assert [pc.address - CODE for pc in frame_pointer_walk(copy, LAYOUT)] == [8, 0x20, 0x30]


def test_registers_of_no_known_machine_have_no_frames() -> None:
    for size in (0, 1, 167, 169, 272, 287, 289, 4096):
        assert frame_pointer_walk(StackCopy(1, 1, 1, bytes(size), CHAIN), LAYOUT) == ()


def test_records_that_lead_down_or_round_end_the_walk() -> None:
    for loop in (SP, SP - 16, 0, (1 << 64) - 1):
        copy = aarch64(words(loop, CODE + 0x20), CODE + 8, SP, CODE + 0x20)
        assert [pc.address - CODE for pc in frame_pointer_walk(copy, LAYOUT)] == [8, 0x20]


@given(st.binary(max_size=600), st.sampled_from([168, 288, 100]))
def test_any_bytes_are_walked_in_bounds(data: bytes, size: int) -> None:
    copy = StackCopy(1, 1, 1, data[:size].ljust(size, b"\xff"), data[size:])
    assert len(frame_pointer_walk(copy, LAYOUT)) <= MAX_FRAMES


def own_code() -> int:
    """Where code of a file lies in this very process."""
    vmas = read_maps(os.getpid())
    return next(vma.start for vma in vmas if "x" in vma.perms and vma.path.startswith("/"))


def test_stacks_of_aarch64_without_drgn_are_what_frame_pointers_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    code = own_code()
    memory = words(SP + 16, code + 0x20, 0, 0)
    with Engine() as engine, StackResolver(os.getpid(), engine) as resolver:
        engine.unavailable_reason = "no drgn here: by frame pointers alone"
        stack = resolver.resolve(aarch64(memory, code + 8, SP, code + 0x20))
        assert [frame.module is not None for frame in stack.frames if not frame.inlined] == [True, True]
        assert stack.source is StackSource.FRAME_POINTER
        assert not stack.complete
        assert "frame pointers" in stack.note
        assert not [note for note in resolver.stack_warnings.notes() if "debug information" not in note]


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_registers_of_no_known_machine_make_a_stack_without_frames(
    monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with Engine() as engine, StackResolver(os.getpid(), engine) as resolver:
        for size in (0, 1, 167, 169, 272, 289):
            stack = resolver.resolve(StackCopy(1, 1, 1, bytes(size), CHAIN))
            assert stack.frames == ()
            assert stack.note
        (note,) = resolver.stack_warnings.notes()
        assert note.startswith("6 stack copies could not be unwound")


def test_the_kernel_side_copies_what_is_walked_here() -> None:
    assert REGISTERS_SIZES == REGISTER_BYTES
