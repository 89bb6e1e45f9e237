"""Readers of copied stacks, of names in symbol tables, and of what the confined worker answers."""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Sequence
from itertools import chain, islice, repeat
from typing import Optional

from ebpftrace.stacks import engine, wire
from ebpftrace.stacks.copies import REGISTER_NAMES, REGISTERS_SIZE, Pc, Registers, StackCopy
from ebpftrace.stacks.debugfiles import supplements
from ebpftrace.stacks.demangle import demangle
from ebpftrace.stacks.elf import ElfHeaders
from ebpftrace.stacks.files import StoredFile
from ebpftrace.stacks.framepointers import MAX_FRAMES, frame_pointer_walk
from ebpftrace.stacks.gaps import Caller, Stretch, cross
from ebpftrace.stacks.modules import CodeRange, Layout
from fuzz.elf import empty_root
from fuzz.reader import Reader

_STACK, _CODE, _JIT = 0x7F0000000000, 0x400000, 0x7E0000000000
_LENGTH = 0x10000
_LAYOUT = Layout(
    (CodeRange(_CODE, _CODE + _LENGTH, "/bin/a", 0, 0, 0), CodeRange(_JIT, _JIT + _LENGTH, "", None, 0, 0))
)
_MOST_STEPS = 256
_ODD: tuple[object, ...] = (
    1,
    "f",
    True,
    None,
    -1,
    1 << 70,
    0.5,
    math.inf,
    math.nan,
    "",
    "\0",
    "\ud800",
    "\udcff/../..",
    [],
    [1, 2],
    {},
)
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
    """What a worker that was taken over sends: any bytes, or by the first one a message of odd values."""
    ours, workers = socket.socketpair()
    with ours:
        with workers:
            if data[:1] == b"m":
                wire.send(workers, _made_up(data[1:]))
            else:
                workers.sendall(data)
        message, _, _ = wire.receive(ours)
    walk = engine._walk(message)
    frames = engine._frames(_FILE, Pc(_CODE, True), message.get("names"))
    assert frames
    supplement = message.get("supplement")
    if isinstance(supplement, list) and [type(part) for part in supplement] == [str, str]:
        path, build_id = supplement
        assert not list(supplements("/usr/lib/a", path, build_id, [empty_root()])), "a file in an empty root"
    return walk is not None or frames[0].function


def _made_up(data: bytes) -> dict[str, object]:
    """Which value stands at which place, by one byte each."""
    chosen = (_ODD[byte % len(_ODD)] for byte in chain(data, repeat(0)))
    flags = {name: next(chosen) for name in ("stopped_at", "complete", "truncated", "guessed")}
    pairs = [list(islice(chosen, 2)) for _ in data[8::2]]
    names = [list(islice(chosen, 5)) for _ in data[8::5]]
    return {**flags, "supplement": list(islice(chosen, 2)), "pcs": pairs, "names": names}


def _answers() -> Sequence[bytes]:
    text = json.dumps(_made_up(bytes(20))).encode()
    return [b"m" + bytes(20), struct.pack("<II", len(text), 0) + text]


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
