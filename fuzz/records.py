# SPDX-License-Identifier: Apache-2.0
"""Readers of what the kernel side records: its numbers are believed, the strings in it are the target's."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ebpftrace.capture.btf import Btf
from ebpftrace.capture.calls.layout import (
    CALL,
    CLONE_TAIL,
    EXEC_STRING_BYTES,
    EXEC_STRINGS,
    EXEC_TAIL,
    RecordKind,
    numbers,
)
from ebpftrace.capture.calls.records import CopiedStack, Decoder
from ebpftrace.capture.ringbuf import records
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Clock
from ebpftrace.strace.format import Style, Transcript
from fuzz.reader import Reader
from fuzz.texts import is_plain

_KINDS = tuple(RecordKind)
_CALLS = numbers()
_LEAVING = ("exit", "exit_group")
"""Calls that never return."""
_RETURNING = tuple(number for name, number in _CALLS.items() if name not in _LEAVING)
_STACK_BYTES = 1024
_SIZES = {
    RecordKind.CLONED: CALL.size + CLONE_TAIL.size,
    RecordKind.EXECUTES: CALL.size + EXEC_TAIL.size + EXEC_STRINGS * EXEC_STRING_BYTES + 64,
    RecordKind.STACK: _STACK_BYTES,
}
_AT_KIND = 12
"""Of ``HEAD``: kind and number of a call."""


def _piece(data: bytes) -> Iterator[bytes]:
    """Whole records as the ring buffer holds them: which kind and call by two bytes, the rest as it comes."""
    at = 0
    while at + 2 <= len(data):
        kind, number = _KINDS[data[at] % len(_KINDS)], _RETURNING[data[at + 1] % len(_RETURNING)]
        if kind == RecordKind.LEAVES:
            number = _CALLS[_LEAVING[data[at + 1] % 2]]
        size = _SIZES.get(kind, CALL.size)
        record = bytearray(data[at + 2 : at + 2 + size].ljust(size, b"\0"))
        struct.pack_into("=HH", record, _AT_KIND, kind, number)
        yield struct.pack("=II", size, 0) + record + bytes(-size % 8)
        at += 2 + size


def _calls(data: bytes) -> object:
    transcript = Transcript(Style(relative=True, took=True), Clock(0, 0))
    shown = 0
    for event in Decoder().events(records(b"".join(_piece(data)))):
        if isinstance(event, CopiedStack):
            assert len(event.copy.memory) <= _STACK_BYTES
            continue
        for line in transcript.lines(event):
            assert line.endswith("\n"), line
            assert is_plain(line[:-1]), line
            shown += 1
    return shown


def _call_seeds() -> Sequence[bytes]:
    return [
        bytes((kind, number)) + bytes(2000) for kind in range(len(_KINDS)) for number in range(len(_CALLS))
    ]


def _types(data: bytes) -> object:
    types = Btf(data)
    types.has_name("task_struct")
    return types.struct_size("task_struct") + types.member_offset("task_struct", "exit_code") + 1


def _type_seeds() -> Sequence[bytes]:
    """An integer and a structure of one member (Documentation/bpf/btf.rst)."""
    strings = b"\0task_struct\0exit_code\0"
    types = struct.pack("<4I", 13, 1 << 24, 4, 32) + struct.pack("<6I", 1, 4 << 24 | 1, 8, 13, 1, 32)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return [header + types + strings]


READERS = (
    Reader("call-records", _calls, _call_seeds),
    Reader("btf", _types, _type_seeds, (CannotTrace,)),
)
