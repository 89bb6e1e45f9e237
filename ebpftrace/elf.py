# SPDX-License-Identifier: Apache-2.0
"""Headers of 64-bit ELF files, read with bounds: a file is the target's and may lie.

Source of the layouts: System V ABI (gABI) chapters 4 and 5, and its x86-64 supplement.
Reads with ``pread`` only: a file cut short under a memory map would kill the reader (SIGBUS).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

Read = Callable[[int, int], bytes]
"""(file offset, count) -> at most count bytes."""

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME = 1, 2, 3, 4, 0x6474E550
PF_X = 1
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS, SHT_DYNSYM, SHT_X86_64_UNWIND = 1, 2, 3, 8, 11, 0x70000001
SHF_EXECINSTR = 4
EM_X86_64, EM_AARCH64 = 62, 183
NT_GNU_BUILD_ID = 3

MAGIC = b"\x7fELF"
CLASS_32, _CLASS_64 = 1, 2
_ORDERS = {1: "<", 2: ">"}
"""Byte orders as ``struct`` writes them, by the byte after the class."""
_READ_OF_EHDR, _PHDR, _SHDR = "16xHH4xQQQ6xHHHHH", "IIQQQQQQ", "IIQQQQIIQQ"
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR, SHDR = struct.Struct("<" + _PHDR), struct.Struct("<" + _SHDR)
NOTE = struct.Struct("<III")

MAX_SECTIONS = 1 << 16
MAX_KEPT_SECTIONS = 256
MAX_SEGMENTS = 64
"""Four times as many as any file of a distribution has: headers of thousands of files are kept."""
MAX_DYNAMIC_SYMBOLS = 1 << 20
MAX_NAMES_BYTES = 4 << 20
MAX_NOTE_BYTES = 64 << 10
MAX_ADDRESS = 1 << 47


_WANTED = frozenset(
    {".eh_frame", ".eh_frame_hdr", ".debug_frame", ".zdebug_frame", ".gnu_debuglink", ".gnu_debugaltlink"}
    | {".symtab", ".strtab", ".dynsym", ".dynstr", ".text", ".plt", ".PyRuntime"}
)
"""Sections that are asked for by name, and kept first where there are very many."""
_DYNAMIC = struct.Struct("<qQ")
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_GNU_HASH = 4, 5, 6, 10, 0x6FFFFEF5
_SYMBOL_SIZE = 24


def reader(fd: int) -> Read:
    """Positioned reads of a file; offsets that no file has read as its end."""
    return lambda offset, count: os.pread(fd, count, offset) if offset < 1 << 62 else b""


class NotElfError(Exception):
    """Not a 64-bit ELF file of the kind that is wanted, or one cut short."""


class FileHeader(NamedTuple):
    """The header of a 64-bit ELF file of either byte order; the names are those of elf(5)."""

    order: str
    """As ``struct`` writes it: "<" or ">"."""
    type: int
    machine: int
    entry: int
    phoff: int
    shoff: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class Segment(NamedTuple):
    """A program header."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


class SectionHeader(NamedTuple):
    """A section header; ``name`` is an offset in the table of names."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Section(NamedTuple):
    """A section header with its name."""

    name: str
    type: int
    address: int
    offset: int
    size: int


@dataclass(frozen=True)
class ElfHeaders:
    """What unwinding needs of an ELF file's headers."""

    type: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    build_id: Optional[bytes]
    entry: int = 0
    """File address of the first instruction."""
    machine: int = EM_X86_64

    @property
    def loads(self) -> tuple[Segment, ...]:
        """The segments that are in memory at run time."""
        return tuple(s for s in self.segments if s.type == PT_LOAD and s.memory_size)

    @property
    def start(self) -> int:
        """Lowest file address of any loaded byte (not rounded to a page)."""
        return min(load.address for load in self.loads)

    @property
    def end(self) -> int:
        """End of the highest loaded byte, as file address."""
        return max(load.address + load.memory_size for load in self.loads)

    def section(self, name: str) -> Optional[Section]:
        """The first section of that name, None if there is none."""
        return next((section for section in self.sections if section.name == name), None)


def read_headers(read: Read) -> ElfHeaders:
    """Read headers, section names and build id of a little-endian executable or library.

    Section headers that make no sense are taken for missing: nothing at run time needs them.
    Raises NotElfError, and OSError from ``read``.
    """
    header = read_file_header(read)
    if (
        header.order != "<"
        or header.machine not in (EM_X86_64, EM_AARCH64)
        or header.type not in (ET_EXEC, ET_DYN)
    ):
        raise NotElfError("not an ELF executable or library of a known machine")
    if not 0 < header.phnum <= MAX_SEGMENTS:
        raise NotElfError("no usable program headers")
    segments = read_segments(read, header, MAX_SEGMENTS)
    loads = [s for s in segments if s.type == PT_LOAD and s.memory_size]
    if not loads or any(s.address + s.memory_size > MAX_ADDRESS for s in loads):
        raise NotElfError("no loadable segment, or one outside the address space")
    sections: tuple[Section, ...] = ()
    if header.shoff:
        with suppress(NotElfError):
            sections = _read_sections(read, header)
    sections = sections or tuple(_dynamic_sections(read, segments))
    return ElfHeaders(
        header.type, segments, sections, _build_id(read, segments), header.entry, header.machine
    )


def read_file_header(read: Read) -> FileHeader:
    """Read the header of a 64-bit file.  Raises NotElfError, and OSError from ``read``."""
    raw = read(0, EHDR.size)
    if len(raw) < EHDR.size or raw[:5] != MAGIC + bytes([_CLASS_64]) or raw[5] not in _ORDERS:
        raise NotElfError("no 64-bit ELF file")
    order = _ORDERS[raw[5]]
    return FileHeader(order, *struct.unpack(order + _READ_OF_EHDR, raw))


def read_segments(read: Read, header: FileHeader, limit: int) -> tuple[Segment, ...]:
    """Read the program headers, at most ``limit``.  Raises NotElfError, and OSError from ``read``."""
    table = _read_table(read, header.order + _PHDR, header.phoff, header.phentsize, min(header.phnum, limit))
    return tuple(Segment(*fields[:4], *fields[5:7]) for fields in table)


def read_section_headers(read: Read, header: FileHeader, count: int) -> list[SectionHeader]:
    """Read the first ``count`` section headers.  Raises NotElfError, and OSError from ``read``."""
    table = _read_table(read, header.order + _SHDR, header.shoff, header.shentsize, count)
    return [SectionHeader(*fields) for fields in table]


def _read_table(
    read: Read, layout: str, offset: int, entry_size: int, count: int
) -> Iterator[tuple[int, ...]]:
    fields = struct.Struct(layout)
    if count and entry_size != fields.size:
        raise NotElfError("headers of another size")
    raw = read(offset, count * fields.size)
    if len(raw) < count * fields.size:
        raise NotElfError("headers cut short")
    return fields.iter_unpack(raw)


def _read_sections(read: Read, header: FileHeader) -> tuple[Section, ...]:
    (first,) = read_section_headers(read, header, 1)
    # Where there are 0xff00 sections or more, the first header has their number and that of the names.
    shnum = header.shnum or first.size
    shstrndx = header.shstrndx if header.shstrndx < 0xFF00 else first.link
    if not shstrndx < shnum <= MAX_SECTIONS:
        return ()
    headers = read_section_headers(read, header, shnum)
    names = read(headers[shstrndx].offset, min(headers[shstrndx].size, MAX_NAMES_BYTES))

    def name(start: int) -> str:
        end = names.find(b"\0", start, start + 256)
        return names[start:end].decode("latin-1") if end >= 0 else ""

    def rank(section: SectionHeader) -> int:
        return 0 if name(section.name) in _WANTED else 1 if section.flags & SHF_EXECINSTR else 2

    if len(headers) > MAX_KEPT_SECTIONS:
        headers = sorted(headers, key=rank)[:MAX_KEPT_SECTIONS]
    return tuple(Section(name(h.name), h.type, h.address, h.offset, h.size) for h in headers)


def _dynamic_sections(read: Read, segments: tuple[Segment, ...]) -> Iterator[Section]:
    """The dynamic symbols as sections, of a file without section headers: as ld.so finds them (gABI 5)."""
    loads = [segment for segment in segments if segment.type == PT_LOAD]
    dynamic = next((segment for segment in segments if segment.type == PT_DYNAMIC), None)
    if dynamic is None:
        return
    raw = read(dynamic.offset, min(dynamic.file_size, MAX_NOTE_BYTES))
    tags = dict(_DYNAMIC.iter_unpack(raw[: len(raw) - len(raw) % _DYNAMIC.size]))
    offsets = {
        tag: load.offset + value - load.address
        for tag, value in tags.items()
        for load in loads
        if 0 <= value - load.address < load.file_size
    }
    if _DT_SYMTAB not in offsets or _DT_STRTAB not in offsets:
        return
    count = 0
    if _DT_HASH in offsets:
        head = read(offsets[_DT_HASH], 8)
        count = struct.unpack("<II", head)[1] if len(head) == 8 else 0
    elif _DT_GNU_HASH in offsets:
        count = _gnu_hash_symbols(read, offsets[_DT_GNU_HASH])
    if 0 < count <= MAX_DYNAMIC_SYMBOLS:
        # Without addresses: they are no proof that something lies there.
        yield Section(".dynsym", SHT_DYNSYM, 0, offsets[_DT_SYMTAB], count * _SYMBOL_SIZE)
        yield Section(".dynstr", SHT_STRTAB, 0, offsets[_DT_STRTAB], tags.get(_DT_STRSZ, 0))


def _gnu_hash_symbols(read: Read, offset: int) -> int:
    """How many symbols there are, by the table that finds them by name (binutils, bfd/elflink.c)."""
    head = read(offset, 16)
    if len(head) < 16:
        return 0
    bucket_count, first, bloom_words, _ = struct.unpack("<IIII", head)
    if max(bucket_count, bloom_words) > MAX_DYNAMIC_SYMBOLS:
        return 0
    buckets_at = offset + 16 + 8 * bloom_words
    raw = read(buckets_at, 4 * bucket_count)
    last = max(struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) & ~3]), default=0)
    if last < first:
        return int(first)
    # A chain ends where the lowest bit is set; that of the last bucket is the end of all.
    chain = read(buckets_at + 4 * (bucket_count + last - first), 4 * MAX_DYNAMIC_SYMBOLS)
    for at in range(0, len(chain) & ~3, 4):
        if chain[at] & 1:
            return int(last + at // 4 + 1)
    return 0


def _build_id(read: Read, segments: tuple[Segment, ...]) -> Optional[bytes]:
    for segment in segments:
        if segment.type != PT_NOTE:
            continue
        for name, kind, body in _notes(read(segment.offset, min(segment.file_size, MAX_NOTE_BYTES))):
            if name == b"GNU\0" and kind == NT_GNU_BUILD_ID and 2 <= len(body) <= 64:
                return body
    return None


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + NOTE.size <= len(data):
        name_size, body_size, kind = NOTE.unpack_from(data, at)
        name_at = at + NOTE.size
        body_at = name_at + (name_size + 3 & ~3)
        yield data[name_at : name_at + name_size], kind, data[body_at : body_at + body_size]
        at = body_at + (body_size + 3 & ~3)
