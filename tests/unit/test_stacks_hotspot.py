# SPDX-License-Identifier: Apache-2.0
"""What a JVM says of the code that it compiled, in memory made up for it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.elf import ElfHeaders, Section
from ebpftrace.unwind.copies import CompiledCode
from ebpftrace.unwind.hotspot import HotSpot, UnknownJvmError

BIAS = 0x7F0000000000
SYMBOLS, STRUCTS, TYPES, TEXTS = BIAS + 0x1000, 0x10000, 0x18000, 0x20000
HEAP, SEGMENTS, OBJECTS = 0x400000, 0x50000, 0x60000
SHIFT = 7
SEGMENT = 1 << SHIFT
COUNT = 1024
"""Segments of the heap."""
HEADER = 16
STRIDE = 48

FIELDS = {
    ("CodeCache", "_heaps"): (0, "GrowableArray<CodeHeap*>*"),
    ("GrowableArrayBase", "_len"): (0, "int"),
    ("GrowableArray<int>", "_data"): (8, "int*"),
    ("CodeHeap", "_memory"): (8, "VirtualSpace"),
    ("CodeHeap", "_segmap"): (64, "VirtualSpace"),
    ("CodeHeap", "_log2_segment_size"): (128, "int"),
    ("VirtualSpace", "_low"): (16, "char*"),
    ("VirtualSpace", "_high"): (24, "char*"),
    ("CodeBlob", "_name"): (8, "const char*"),
    ("CodeBlob", "_frame_size"): (28, "int"),
    ("nmethod", "_orig_pc_offset"): (64, "int"),
}
JDK_17 = {
    **FIELDS,
    ("CodeBlob", "_code_begin"): (32, "address"),
    ("CodeBlob", "_code_end"): (40, "address"),
    ("CodeBlob", "_frame_complete_offset"): (20, "int"),
    ("CompiledMethod", "_deopt_handler_begin"): (56, "address"),
}
JDK_25 = {
    **FIELDS,
    ("CodeBlob", "_code_offset"): (32, "int"),
    ("CodeBlob", "_data_offset"): (40, "int"),
    ("CodeBlob", "_frame_complete_offset"): (20, "int16_t"),
    ("nmethod", "_deopt_handler_offset"): (56, "int"),
}
BOTH = pytest.mark.parametrize("fields", [JDK_17, JDK_25], ids=["17", "25"])


class Jvm:
    """Memory of a process, and the file of its library."""

    def __init__(self, fields: dict[tuple[str, str], tuple[int, str]]) -> None:
        self.memory = {BIAS: bytearray(0x2000), 0: bytearray(HEAP + COUNT * SEGMENT)}
        self.is_newer = ("CodeBlob", "_code_offset") in fields
        self._texts: dict[str, int] = {}
        self._end_of_texts = TEXTS
        entries = [
            struct.pack(
                "<QQQQQQ", self._text(owner), self._text(name), self._text(kind), 0, offset,
                OBJECTS if owner == "CodeCache" else 0,
            )
            for (owner, name), (offset, kind) in fields.items()
        ]  # fmt: skip
        self.put(STRUCTS, b"".join(entries))
        self.put(TYPES, struct.pack("<Q32xQ", self._text("HeapBlock"), HEADER))
        words = {"gHotSpotVMStructs": STRUCTS, "gHotSpotVMStructEntryArrayStride": STRIDE}
        words.update({"gHotSpotVMTypes": TYPES, "gHotSpotVMTypeEntryArrayStride": STRIDE})
        parts = ("TypeName", "FieldName", "TypeString", "IsStatic", "Offset", "Address")
        words.update({f"gHotSpotVMStructEntry{part}Offset": 8 * n for n, part in enumerate(parts)})
        words.update({"gHotSpotVMTypeEntryTypeNameOffset": 0, "gHotSpotVMTypeEntrySizeOffset": 40})
        names, table = bytearray(b"\0another\0"), bytearray(struct.pack("<I4xQ8x", 1, 5))
        for number, (name, word) in enumerate(words.items()):
            self.put(SYMBOLS + 8 * number, struct.pack("<Q", word))
            table += struct.pack("<I4xQ8x", len(names), SYMBOLS + 8 * number - BIAS)
            names += name.encode() + b"\0"
        self.file = bytes(names + table)
        sections = (
            Section(".dynstr", 3, 0, 0, len(names)),
            Section(".dynsym", 11, 0, len(names), len(table)),
        )
        self.headers = ElfHeaders(3, (), sections, None)
        self.put(OBJECTS, struct.pack("<Q", OBJECTS + 8))
        self.put(OBJECTS + 8, struct.pack("<i4xQ", 1, OBJECTS + 32))
        self.put(OBJECTS + 32, struct.pack("<Q", OBJECTS + 64))
        self.put(OBJECTS + 64 + 8 + 16, struct.pack("<QQ", HEAP, HEAP + COUNT * SEGMENT))
        self.put(OBJECTS + 64 + 64 + 16, struct.pack("<Q", SEGMENTS))
        self.put(OBJECTS + 64 + 128, struct.pack("<i", SHIFT))
        self.put(SEGMENTS, b"\xff" * COUNT)

    def _text(self, text: str) -> int:
        if text not in self._texts:
            self._texts[text] = self._end_of_texts
            self.put(self._end_of_texts, text.encode() + b"\0")
            self._end_of_texts += len(text) + 1
        return self._texts[text]

    def put(self, at: int, raw: bytes) -> None:
        base = BIAS if at >= BIAS else 0
        self.memory[base][at - base : at - base + len(raw)] = raw

    def read(self, at: int, count: int) -> bytes:
        base = BIAS if at >= BIAS else 0
        return bytes(self.memory[base][at - base : at - base + count])

    def read_file(self, offset: int, count: int) -> bytes:
        return self.file[offset : offset + count]

    def hotspot(self) -> HotSpot:
        return HotSpot(self.headers, self.read_file, BIAS, self.read)

    def add(self, first: int, count: int, words: int, complete: int = 12, original: int = 0) -> CompiledCode:
        """Code in so many segments, with frames of so many words; its first 128 bytes are of the JVM."""
        at = HEAP + first * SEGMENT + HEADER
        start, end = at + 128, at + count * SEGMENT - HEADER - 16
        deoptimized = end - 16 if original else 0
        self.put(at + 20, struct.pack("<h" if self.is_newer else "<i", complete))
        self.put(at + 28, struct.pack("<i", words))
        if self.is_newer:
            self.put(at + 32, struct.pack("<i4xi4x", start - at, end - at))
            self.put(at + 56, struct.pack("<i4xi", max(deoptimized - at, 0), original))
        else:
            self.put(at + 32, struct.pack("<QQ", start, end))
            self.put(at + 56, struct.pack("<Qi", deoptimized, original))
        # Each segment has how far back another is, at most 254, until there is the first.
        self.put(SEGMENTS + first, bytes([0, *(1 + (n - 1) % 254 for n in range(1, count))]))
        return CompiledCode(start + max(complete, 0), end, 8 * words, deoptimized, original)


@BOTH
def test_frames_have_the_size_that_the_jvm_says(fields: dict[tuple[str, str], tuple[int, str]]) -> None:
    jvm = Jvm(fields)
    first = jvm.add(2, 4, 6, original=16)
    second = jvm.add(6, 3, 9, complete=-1)
    page = HEAP + 4096
    huge = jvm.add(32, 900, 20)
    hotspot = jvm.hotspot()
    assert hotspot.code_in(HEAP, page) == [first, second]
    for within in range(page, HEAP + 932 * SEGMENT - 4096, 4096):
        assert hotspot.code_in(within, within + 4096) == [huge]
    assert hotspot.code_in(HEAP + 960 * SEGMENT, HEAP + 960 * SEGMENT + 4096) == []
    assert hotspot.code_in(HEAP - 4096, HEAP) == []
    assert hotspot.code_in(HEAP + COUNT * SEGMENT, HEAP + COUNT * SEGMENT + 4096) == []


@BOTH
def test_code_without_frames_of_one_size_is_left_out(fields: dict[tuple[str, str], tuple[int, str]]) -> None:
    """Such as the interpreter."""
    jvm = Jvm(fields)
    jvm.add(0, 4, 0)
    jvm.add(4, 4, 1 << 30)
    jvm.add(8, 4, 6, complete=4096)
    assert jvm.hotspot().code_in(HEAP, HEAP + 4096) == []


def test_an_older_jvm_has_the_length_of_its_heaps_elsewhere() -> None:
    fields = dict(JDK_17)
    fields["GenericGrowableArray", "_len"] = fields.pop(("GrowableArrayBase", "_len"))
    jvm = Jvm(fields)
    code = jvm.add(2, 4, 6)
    assert jvm.hotspot().code_in(HEAP, HEAP + 4096) == [code]


@pytest.mark.parametrize("lacking", [("CodeBlob", "_frame_size"), ("CodeHeap", "_segmap")])
def test_a_jvm_without_a_part_of_the_table_is_not_known(lacking: tuple[str, str]) -> None:
    fields = {key: value for key, value in JDK_17.items() if key != lacking}
    with pytest.raises(UnknownJvmError):
        Jvm(fields).hotspot()


def test_a_library_without_the_table_is_not_known() -> None:
    jvm = Jvm(JDK_17)
    jvm.file = bytes(len(jvm.file))
    with pytest.raises(UnknownJvmError):
        jvm.hotspot()


@given(
    st.lists(st.tuples(st.sampled_from([STRUCTS, TYPES, TEXTS, SEGMENTS, OBJECTS, HEAP, SYMBOLS]),
                       st.integers(0, 600), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)
)  # fmt: skip
def test_whatever_the_memory_has_it_ends_and_raises_nothing_else(
    changes: list[tuple[int, int, bytes]],
) -> None:
    jvm = Jvm(JDK_25)
    jvm.add(2, 4, 6, original=16)
    jvm.add(32, 900, 20)
    for base, at, raw in changes:
        jvm.put(base + at, raw)
    try:
        hotspot = jvm.hotspot()
    except UnknownJvmError:
        return
    for start in (HEAP, HEAP + 4096 * 20):
        for code in hotspot.code_in(start, start + 4096):
            assert code.start < start + 4096
            assert start < code.end
