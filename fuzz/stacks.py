"""Readers of copied stacks, of names in symbol tables, and of what the confined worker answers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Optional

from ebpftrace.stacks import engine, wire
from ebpftrace.stacks.copies import REGISTER_NAMES, REGISTERS_SIZE, Pc, Registers, StackCopy
from ebpftrace.stacks.demangle import demangle
from ebpftrace.stacks.elf import ElfHeaders
from ebpftrace.stacks.files import StoredFile
from ebpftrace.stacks.framepointers import MAX_FRAMES, frame_pointer_walk
from ebpftrace.stacks.gaps import Caller, Stretch, cross
from ebpftrace.stacks.modules import CodeRange, Layout
from fuzz.reader import Reader

_STACK, _CODE, _JIT = 0x7F0000000000, 0x400000, 0x7E0000000000
_LENGTH = 0x10000
_LAYOUT = Layout(
    (CodeRange(_CODE, _CODE + _LENGTH, "/bin/a", 0, 0, 0), CodeRange(_JIT, _JIT + _LENGTH, "", None, 0, 0))
)
_MOST_STEPS = 256
_FILE = StoredFile(0, "/bin/a", -1, ElfHeaders(2, (), (), None))


def _seeds() -> Sequence[bytes]:
    """Three frames, each with its frame pointer, and code that calls; in compiled and in JIT code."""
    found = []
    for code in (_CODE, _JIT):
        words = dict.fromkeys(REGISTER_NAMES, 0)
        words.update(ip=code + 64, sp=_STACK, bp=_STACK + 16, cs=0x33)
        frames = [0, 0, _STACK + 32, code + 16, _STACK + 48, code + 32, 0, 0]
        text = bytes.fromhex("554889e5").ljust(11, b"\x90") + b"\xe8\x20\0\0\0"
        found.append(struct.pack("<29Q", *words.values(), *frames) + text * 4)
    return found


def _copy(data: bytes) -> StackCopy:
    return StackCopy(1, 1, 1, data[:REGISTERS_SIZE].ljust(REGISTERS_SIZE, b"\0"), data[REGISTERS_SIZE:])


def _by_frame_pointers(data: bytes) -> object:
    pcs = frame_pointer_walk(_copy(data), _LAYOUT)
    assert len(pcs) <= MAX_FRAMES
    return len(pcs) > 1


def _by_searching(data: bytes) -> object:
    """As ``unwind`` crosses one frame without a table after the other; the code is the same bytes."""
    copy = _copy(data)
    regs = Registers.from_bytes(copy.registers)
    stack = regs.sp

    def region(address: int) -> Optional[int]:
        found = _LAYOUT.find(address)
        return None if found is None else found.start

    def code(address: int, count: int) -> bytes:
        begin = address - _CODE
        return data[begin : begin + count] if 0 <= begin < _LENGTH else b""

    for step in range(_MOST_STEPS):
        frame = Stretch(regs, stack, copy.memory, step == 0 and regs.in_system_call)
        caller = cross(frame, frozenset({_CODE + 8}), region, code)
        if not isinstance(caller, Caller):
            return step
        assert caller.outermost or caller.sp > regs.sp, "the walk does not go up"
        regs = regs.replace(caller.return_address - 1, caller.sp, caller.bp)
    return True


def _names(data: bytes) -> object:
    name = data.decode("utf-8", "surrogateescape")
    return demangle(name) != name


def _answer(data: bytes) -> object:
    """The bytes as they are, or, by the first one, the text of a sound message."""
    if data[:1] == b"t":
        data = struct.pack("<II", len(data) - 1, 0) + data[1:]
    ours, workers = socket.socketpair()
    with ours:
        with workers:
            workers.sendall(data)
        message, _, fd = wire.receive(ours)
    assert fd is None
    walk = engine._walk(message)
    frames = engine._frames(_FILE, Pc(_CODE, True), message.get("names"))
    assert frames
    return walk is not None or frames[0].function


def _answers() -> Sequence[bytes]:
    texts = (
        b'{"pcs": [[99, true]], "complete": true, "truncated": false, "guessed": false, "stopped_at": 1}',
        b'{"names": [["f", "a.c", 3, false, 4194300]]}',
    )
    return [head + text for text in texts for head in (b"t", struct.pack("<II", len(text), 0))]


READERS = (
    Reader("frame-pointers", _by_frame_pointers, _seeds),
    Reader("gaps", _by_searching, _seeds),
    Reader(
        "names",
        _names,
        lambda: [b"_ZNSt6vectorIiSaIiEE9push_backEOi", b"_RNvCs1_3std3abc", b"_ZN3a$LT$17h0123456789abcdefE"],
    ),
    Reader("worker-answers", _answer, _answers, (wire.ClosedError, OSError)),
)
