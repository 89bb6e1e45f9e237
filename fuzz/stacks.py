# SPDX-License-Identifier: Apache-2.0
"""Readers of copied stacks, of names in symbol tables, and of what the confined worker answers."""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Sequence
from itertools import chain, islice, repeat

from ebpftrace.elf import ElfHeaders
from ebpftrace.unwind import engine, wire
from ebpftrace.unwind.code import Code
from ebpftrace.unwind.code_bytes import CodePlace
from ebpftrace.unwind.compressed import inflated
from ebpftrace.unwind.copied import Caller, Copied, StackFrame
from ebpftrace.unwind.copies import (
    PAGE,
    REGISTER_NAMES,
    REGISTERS_SIZE,
    CompiledCode,
    End,
    MadePage,
    Pc,
    Registers,
    StackCopy,
)
from ebpftrace.unwind.debug_frame import as_eh_frame
from ebpftrace.unwind.debugfiles import supplements
from ebpftrace.unwind.demangle import demangle
from ebpftrace.unwind.fallback import find_caller
from ebpftrace.unwind.files import StoredFile
from ebpftrace.unwind.frame_pointers import MAX_FRAMES, frame_pointer_walk
from ebpftrace.unwind.modules import CodeRange, Layout
from fuzz.elf import empty_root
from fuzz.reader import Reader

_STACK, _CODE, _JIT = 0x7F0000000000, 0x400000, 0x7E0000000000
_LENGTH = 0x10000
_LAYOUT = Layout(
    (CodeRange(_CODE, _CODE + _LENGTH, "/bin/a", 0, 0, 0), CodeRange(_JIT, _JIT + _LENGTH, "", None, 0, 0))
)
_MAX_STEPS = 256
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
_END_VALUES: tuple[object, ...] = (*(end.value for end in End), "f", None, [])
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


def _code_seeds() -> Sequence[bytes]:
    """Three frames of code that calls, pops a word and returns, compiled or made at run time."""
    found = []
    for base, at in ((_CODE, 234), (_JIT, 2)):
        words = dict.fromkeys(REGISTER_NAMES, 0)
        words.update(ip=base + at, sp=_STACK, cs=0x33)
        frames = [0, base + at, 0, base + at, 0, 0, 0, 0]
        code = bytes.fromhex("ffd058c3") * 4
        data = struct.pack("<29Q", *words.values(), *frames) + code
        found.append(data if base == _CODE else code[:2] + data[2:])
    return found


def _debug_frame() -> bytes:
    """One common part and one entry; and as much of nothing."""
    common = struct.pack("<II", 20, 0xFFFFFFFF) + bytes.fromhex("0300017810" + "0c0708900100") + bytes(5)
    tables = common + struct.pack("<IIQQ", 28, 0, _CODE, 64) + bytes(8)
    return tables + bytes(len(tables))


def _copy(data: bytes) -> StackCopy:
    return StackCopy(1, 1, 1, data[:REGISTERS_SIZE].ljust(REGISTERS_SIZE, b"\0"), data[REGISTERS_SIZE:])


def _by_frame_pointers(data: bytes) -> object:
    pcs = frame_pointer_walk(_copy(data), _LAYOUT)
    assert len(pcs) <= MAX_FRAMES
    return len(pcs) > 1


def _by_code(data: bytes) -> object:
    """As ``unwind`` crosses one frame without a table after the other; the code is the same bytes."""
    copy = _copy(data)
    regs = Registers.from_bytes(copy.registers)
    memory = Copied(regs.sp, copy.memory, data[0] if data else 0, bool(data[1:2]))
    places = [CodePlace(place.start, place.end, place.file, place.offset) for place in _LAYOUT.ranges]
    code = Code(places, lambda _, offset, count: data[offset : offset + count])
    compiled = CompiledCode(_JIT, _JIT + PAGE, 8 * (data[0] if data else 2), _JIT + 16, 8)
    code.made({_JIT: MadePage(data.ljust(PAGE, b"\xc3")[:PAGE], (compiled,))})
    exact, sp_known = True, True
    for step in range(_MAX_STEPS):
        caller = find_caller(StackFrame(regs, memory, exact, sp_known), [_CODE + 8], code)
        if not isinstance(caller, Caller) or caller.outermost:
            return step
        if not caller.exact and caller.registers.sp <= regs.sp:
            return step
        regs, exact, sp_known = caller.registers, caller.exact, caller.sp_known
    return True


def _tables(data: bytes) -> object:
    """A section for debuggers, and beside it one that some functions are in already."""
    half = len(data) // 2
    made = as_eh_frame(inflated(data[:half]), data[half:], _CODE)
    assert len(made) <= 40 * len(data) + 64
    return len(made)


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
    """Which value is at which position, by one byte each."""
    chosen = (_ODD[byte % len(_ODD)] for byte in chain(data, repeat(0)))
    flags = {name: next(chosen) for name in ("stopped_at", "lacking", "guessed", "wants")}
    flags.update(
        end=_END_VALUES[data[4] % len(_END_VALUES)] if data[4:] else None, slots=list(islice(chosen, 2))
    )
    pairs = [list(islice(chosen, 2)) for _ in data[8::2]]
    names = [list(islice(chosen, 5)) for _ in data[8::5]]
    return {**flags, "supplement": list(islice(chosen, 2)), "pcs": pairs, "names": names}


def _answers() -> Sequence[bytes]:
    text = json.dumps(_made_up(bytes(20))).encode()
    return [b"m" + bytes(20), struct.pack("<II", len(text), 0) + text]


READERS = (
    Reader("frame-pointers", _by_frame_pointers, _seeds),
    Reader("gaps", _by_code, _code_seeds),
    Reader("debug-frame", _tables, lambda: [_debug_frame()]),
    Reader(
        "names",
        _names,
        lambda: [b"_ZNSt6vectorIiSaIiEE9push_backEOi", b"_RNvCs1_3std3abc", b"_ZN3a$LT$17h0123456789abcdefE"],
    ),
    Reader("worker-answers", _answer, _answers, (wire.ClosedError, OSError)),
)
