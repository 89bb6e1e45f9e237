# SPDX-License-Identifier: Apache-2.0
"""Frames of code that HotSpot compiled: how large the JVM itself takes them to be.

The JVM unwinds its compiled code by a size that it keeps with each piece of code (``CodeBlob::_frame_size``;
src/hotspot/share/runtime/frame.cpp, sender_for_compiled_frame).  Where that is in memory differs between
versions; libjvm exports a table of it for the serviceability agent (``gHotSpotVMStructs``,
src/hotspot/share/runtime/vmStructs.cpp).  A map of segments leads from an address to the piece of code that
contains it (src/hotspot/share/memory/heap.cpp, CodeHeap::find_block_for).

All of it is read from the target: counts and sizes are limited, and an address is only read, never believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Callable, NamedTuple, Optional

from ebpftrace.elf import ElfHeaders, Read
from ebpftrace.unwind.copies import CompiledCode

ReadMemory = Callable[[int, int], bytes]
"""(address, count) -> at most count bytes of the target's memory, fewer where it can't be read."""

LIBRARY = "libjvm.so"
MAX_FRAME = 1 << 20
"""Bytes; HotSpot's own limit of a compiled frame is far lower."""
_MAX_ENTRIES = 1 << 12
_MAX_NAME = 64
_MAX_HEAPS = 16
_MAX_STEPS = 512
"""From a segment to the beginning of its code; each step but the last is mostly over 254 segments."""
_SHIFTS = range(4, 16)
"""Binary logarithms of a segment's bytes; 6 or 7 unless -XX:CodeCacheSegmentSize says otherwise."""
_MAX_HEADER = 1 << 12
_MAX_SYMBOLS = 32 << 20
_FREE = 0xFF
_WORD = 8
_SYMBOL = struct.Struct("<I4xQ8x")
_STRUCTS, _TYPES = "gHotSpotVMStruct", "gHotSpotVMType"
_SIZES = {"int16_t": "h", "u2": "H", "int": "i", "uint32_t": "I"}
"""By type; all others that are read are addresses."""


class _Field(NamedTuple):
    offset: int
    kind: str
    address: int
    """Of a static one."""


class _Heap(NamedTuple):
    start: int
    end: int
    segments: int
    """Address of the map, with one byte for each segment."""
    shift: int


class UnknownJvmError(Exception):
    """Its table cannot be read, or lacks a part."""


class HotSpot:
    """The compiled code of one JVM, read while it runs."""

    def __init__(self, headers: ElfHeaders, read_file: Read, bias: int, read: ReadMemory) -> None:
        """Of the JVM whose library is loaded with ``bias``.  Raises ``UnknownJvmError``."""
        self._read = read
        try:
            tables = _Tables(_symbols(headers, read_file), bias, read)
            self._fields = tables.fields()
            self._header = tables.size_of("HeapBlock")
            self._needed = _WORD + max(
                field.offset for (owner, _), field in self._fields.items() if owner in _OF_CODE
            )
        except (KeyError, ValueError, struct.error, OSError) as error:
            raise UnknownJvmError from error
        if self._needed > _MAX_HEADER or self._header > _MAX_HEADER:
            raise UnknownJvmError

    def code_in(self, start: int, end: int) -> list[CompiledCode]:
        """What lies in [start, end), at most a page; empty if nothing does, or it can't be read."""
        found = []
        try:
            for heap in self._heaps():
                if heap.start < end and start < heap.end:
                    for at in self._blocks(heap, max(start, heap.start), min(end, heap.end)):
                        code = self._code(at + self._header)
                        if code is not None and code.start < end and start < code.end:
                            found.append(code)
        except (KeyError, struct.error, OSError):
            return []
        return found

    def _heaps(self) -> Iterator[_Heap]:
        array = self._address(self._fields["CodeCache", "_heaps"].address)
        base = (
            "GrowableArrayBase" if ("GrowableArrayBase", "_len") in self._fields else "GenericGrowableArray"
        )
        count = self._value(array, base, "_len")
        data = self._value(array, "GrowableArray<int>", "_data")
        for number in range(min(count, _MAX_HEAPS)):
            heap = self._address(data + number * _WORD)
            memory = heap + self._fields["CodeHeap", "_memory"].offset
            segments = heap + self._fields["CodeHeap", "_segmap"].offset
            shift = self._value(heap, "CodeHeap", "_log2_segment_size")
            if shift in _SHIFTS:
                yield _Heap(
                    self._value(memory, "VirtualSpace", "_low"), self._value(memory, "VirtualSpace", "_high"),
                    self._value(segments, "VirtualSpace", "_low"), shift,
                )  # fmt: skip

    def _blocks(self, heap: _Heap, start: int, end: int) -> Iterator[int]:
        """Where the blocks begin that [start, end) has parts of."""
        first, last = (start - heap.start) >> heap.shift, (end - 1 - heap.start) >> heap.shift
        tags = self._read(heap.segments + first, last - first + 1)
        if not tags:
            return
        segment, tag = first, tags[0]
        for _ in range(_MAX_STEPS):
            if tag in (0, _FREE) or tag > segment:
                break
            segment -= tag
            tag = self._unpacked("B", heap.segments + segment)
        begins = {segment} if tag == 0 else set()
        begins.update(first + number for number, tag in enumerate(tags) if tag == 0)
        yield from (heap.start + (number << heap.shift) for number in sorted(begins))

    def _code(self, at: int) -> Optional[CompiledCode]:
        header = self._read(at, self._needed)

        def value(owner: str, name: str) -> int:
            field = self._fields[owner, name]
            return int(struct.unpack_from(f"<{field.kind}", header, field.offset)[0])

        if ("CodeBlob", "_code_begin") in self._fields:
            start, end = value("CodeBlob", "_code_begin"), value("CodeBlob", "_code_end")
        else:  # JDK 23 and later
            start, end = at + value("CodeBlob", "_code_offset"), at + value("CodeBlob", "_data_offset")
        size = _WORD * value("CodeBlob", "_frame_size")
        # The frame is not whole before; -1 if the JVM does not want to know.
        start += max(value("CodeBlob", "_frame_complete_offset"), 0)
        if not at < start < end or not 2 * _WORD <= size <= MAX_FRAME:
            return None
        deoptimized = original = 0
        if ("nmethod", "_orig_pc_offset") in self._fields:
            original = value("nmethod", "_orig_pc_offset")
            if ("CompiledMethod", "_deopt_handler_begin") in self._fields:
                deoptimized = value("CompiledMethod", "_deopt_handler_begin")
            elif ("nmethod", "_deopt_handler_offset") in self._fields:
                deoptimized = at + value("nmethod", "_deopt_handler_offset")
        # Other code than methods has other things there.
        if not start < deoptimized < end or not 0 < original < size:
            deoptimized = original = 0
        return CompiledCode(start, end, size, deoptimized, original)

    def _value(self, at: int, owner: str, name: str) -> int:
        field = self._fields[owner, name]
        return self._unpacked(field.kind, at + field.offset)

    def _address(self, at: int) -> int:
        return self._unpacked("Q", at)

    def _unpacked(self, kind: str, at: int) -> int:
        form = struct.Struct(f"<{kind}")
        return int(form.unpack(self._read(at, form.size))[0])


_OF_CODE = ("CodeBlob", "CompiledMethod", "nmethod")
_WANTED = {
    "CodeCache": ["_heaps"],
    "GrowableArrayBase": ["_len"],
    "GenericGrowableArray": ["_len"],
    "GrowableArray<int>": ["_data"],
    "CodeHeap": ["_memory", "_segmap", "_log2_segment_size"],
    "VirtualSpace": ["_low", "_high"],
    "CodeBlob": [
        "_frame_size", "_frame_complete_offset", "_code_begin", "_code_end", "_code_offset", "_data_offset",
    ],
    "CompiledMethod": ["_deopt_handler_begin"],
    "nmethod": ["_orig_pc_offset", "_deopt_handler_offset"],
}  # fmt: skip
_NEEDED = [
    ("CodeCache", "_heaps"), ("GrowableArray<int>", "_data"), ("CodeHeap", "_memory"),
    ("CodeHeap", "_segmap"), ("CodeHeap", "_log2_segment_size"),
    ("VirtualSpace", "_low"), ("VirtualSpace", "_high"),
    ("CodeBlob", "_frame_size"), ("CodeBlob", "_frame_complete_offset"),
]  # fmt: skip


class _Tables:
    """The exported tables; a name that is not in them raises KeyError."""

    def __init__(self, symbols: dict[str, int], bias: int, read: ReadMemory) -> None:
        self._symbols = symbols
        self._bias = bias
        self._read = read
        self._texts: dict[int, str] = {}

    def fields(self) -> dict[tuple[str, str], _Field]:
        """Those of the wanted ones that there are, by type and name."""
        owner, name, kind, offset, address = (
            self._symbol(f"{_STRUCTS}Entry{part}Offset")
            for part in ("TypeName", "FieldName", "TypeString", "Offset", "Address")
        )
        found = {}
        for entry in self._entries(_STRUCTS):
            wanted = _WANTED.get(self._text(_word(entry, owner)), ())
            field = self._text(_word(entry, name)) if wanted else ""
            if field in wanted:
                form = _SIZES.get(self._text(_word(entry, kind)), "Q")
                where = _Field(_word(entry, offset), form, _word(entry, address))
                found[self._text(_word(entry, owner)), field] = where
        if any(field not in found for field in _NEEDED):
            raise ValueError("fields")
        return found

    def size_of(self, wanted: str) -> int:
        """Bytes of a type."""
        name, size = self._symbol(f"{_TYPES}EntryTypeNameOffset"), self._symbol(f"{_TYPES}EntrySizeOffset")
        for entry in self._entries(_TYPES):
            if self._text(_word(entry, name)) == wanted:
                return _word(entry, size)
        raise KeyError(wanted)

    def _entries(self, table: str) -> Iterator[bytes]:
        at, size = self._symbol(f"{table}s"), self._symbol(f"{table}EntryArrayStride")
        if not _WORD <= size <= _MAX_NAME * _WORD:
            raise ValueError(size)
        for number in range(_MAX_ENTRIES):
            entry = self._read(at + number * size, size)
            if not any(entry[:_WORD]):
                return
            yield entry

    def _symbol(self, name: str) -> int:
        """The word at a symbol."""
        return _word(self._read((self._symbols[name] + self._bias) % (1 << 64), _WORD), 0)

    def _text(self, address: int) -> str:
        if address not in self._texts:
            raw = self._read(address, _MAX_NAME).split(b"\0")[0] if address else b""
            self._texts[address] = raw.decode("ascii", "replace")
        return self._texts[address]


def _word(raw: bytes, offset: int) -> int:
    word = raw[offset : offset + _WORD]
    if len(word) != _WORD:
        raise ValueError(offset)
    return int.from_bytes(word, "little")


def _symbols(headers: ElfHeaders, read: Read) -> dict[str, int]:
    """The exported tables, by name."""
    table, strings = headers.section(".dynsym"), headers.section(".dynstr")
    if table is None or strings is None or max(table.size, strings.size) > _MAX_SYMBOLS:
        raise ValueError("symbols")
    names = read(strings.offset, strings.size)
    raw = read(table.offset, table.size)
    found = {}
    for name_at, address in _SYMBOL.iter_unpack(raw[: len(raw) - len(raw) % _SYMBOL.size]):
        if names.startswith((_STRUCTS.encode(), _TYPES.encode()), name_at):
            found[names[name_at : names.find(b"\0", name_at)].decode("ascii", "replace")] = address
    return found
