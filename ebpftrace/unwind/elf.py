# SPDX-License-Identifier: Apache-2.0
"""Headers of a 64-bit ELF file, read with bounds: the file is the target's and may lie.

Source of the layouts: System V ABI (gABI) chapters 4 and 5, and its x86-64 supplement.
Reads with ``pread`` only: a file cut short under a memory map would kill the reader (SIGBUS).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

Read = Callable[[int, int], bytes]
"""(file offset, count) -> at most count bytes."""

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME = 1, 2, 3, 4, 0x6474E550
PF_X = 1
SHT_PROGBITS, SHT_STRTAB, SHT_NOBITS, SHT_DYNSYM, SHT_X86_64_UNWIND = 1, 3, 8, 11, 0x70000001
SHF_EXECINSTR = 4
EM_X86_64, EM_AARCH64 = 62, 183
NT_GNU_BUILD_ID = 3

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
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
    """Not a 64-bit little-endian ELF executable or library, or one cut short."""


class Segment(NamedTuple):
    """A program header."""

    type: int
    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


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
    """Read headers, section names and build id.

    Section headers that make no sense are taken for missing: nothing at run time needs them.
    Raises NotElfError, and OSError from ``read``.
    """
    raw = read(0, EHDR.size)
    if len(raw) < EHDR.size:
        raise NotElfError("shorter than an ELF header")
    ident, kind, machine, _, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = (
        EHDR.unpack(raw)
    )
    if (
        ident[:6] != b"\x7fELF\x02\x01"
        or machine not in (EM_X86_64, EM_AARCH64)
        or kind not in (ET_EXEC, ET_DYN)
    ):
        raise NotElfError("not a 64-bit ELF executable or library of a known machine")
    if phentsize != PHDR.size or not 0 < phnum <= MAX_SEGMENTS:
        raise NotElfError("no usable program headers")
    table = read(phoff, phnum * PHDR.size)
    if len(table) < phnum * PHDR.size:
        raise NotElfError("program headers cut short")
    segments = tuple(Segment(*fields[:4], *fields[5:7]) for fields in PHDR.iter_unpack(table))
    loads = [s for s in segments if s.type == PT_LOAD and s.memory_size]
    if not loads or any(s.address + s.memory_size > MAX_ADDRESS for s in loads):
        raise NotElfError("no loadable segment, or one outside the address space")
    sections: tuple[Section, ...] = ()
    if shentsize == SHDR.size and shoff:
        sections = _read_sections(read, shoff, shnum, shstrndx)
    sections = sections or tuple(_dynamic_sections(read, segments))
    return ElfHeaders(kind, segments, sections, _build_id(read, segments), entry, machine)


def _read_sections(read: Read, shoff: int, shnum: int, shstrndx: int) -> tuple[Section, ...]:
    first = read(shoff, SHDR.size)
    if len(first) < SHDR.size:
        return ()
    # Where there are 0xff00 sections or more, the first header has their number and that of the names.
    shnum, shstrndx = shnum or SHDR.unpack(first)[5], shstrndx if shstrndx < 0xFF00 else SHDR.unpack(first)[6]
    if not shstrndx < shnum <= MAX_SECTIONS:
        return ()
    table = read(shoff, shnum * SHDR.size)
    if len(table) < shnum * SHDR.size:
        return ()
    headers = list(SHDR.iter_unpack(table))
    names_offset, names_size = headers[shstrndx][4:6]
    names = read(names_offset, min(names_size, MAX_NAMES_BYTES))

    def name(start: int) -> str:
        end = names.find(b"\0", start, start + 256)
        return names[start:end].decode("latin-1") if end >= 0 else ""

    def rank(header: tuple[int, ...]) -> int:
        return 0 if name(header[0]) in _WANTED else 1 if header[2] & SHF_EXECINSTR else 2

    if len(headers) > MAX_KEPT_SECTIONS:
        headers = sorted(headers, key=rank)[:MAX_KEPT_SECTIONS]
    return tuple(Section(name(h[0]), h[1], h[3], h[4], h[5]) for h in headers)


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
