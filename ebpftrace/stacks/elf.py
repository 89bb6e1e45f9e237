"""Headers of a 64-bit ELF file, read with bounds: the file is the target's and may lie.

Source of the layouts: System V ABI (gABI) chapters 4 and 5, and its x86-64 supplement.
Reads with ``pread`` only: a file cut short under a memory map would kill the reader (SIGBUS).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

Read = Callable[[int, int], bytes]
"""(file offset, count) -> at most count bytes."""

ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_INTERP, PT_NOTE, PT_GNU_EH_FRAME = 1, 3, 4, 0x6474E550
PF_X = 1
SHT_PROGBITS, SHT_NOBITS, SHT_X86_64_UNWIND = 1, 8, 0x70000001
EM_X86_64, EM_AARCH64 = 62, 183
NT_GNU_BUILD_ID = 3

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
NOTE = struct.Struct("<III")

MAX_SECTIONS = 256
MAX_SEGMENTS = 64
"""Four times as many as any file of a distribution has: headers of thousands of files are kept."""
MAX_NAMES_BYTES = 4 << 20
MAX_NOTE_BYTES = 64 << 10
MAX_ADDRESS = 1 << 47


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
    """What the rest of this room needs of an ELF file's headers."""

    type: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    build_id: Optional[bytes]
    entry: int = 0
    """File address of the first instruction."""

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
    if shentsize == SHDR.size and 0 < shnum <= MAX_SECTIONS and shstrndx < shnum:
        sections = _read_sections(read, shoff, shnum, shstrndx)
    return ElfHeaders(kind, segments, sections, _build_id(read, segments), entry)


def _read_sections(read: Read, shoff: int, shnum: int, shstrndx: int) -> tuple[Section, ...]:
    table = read(shoff, shnum * SHDR.size)
    if len(table) < shnum * SHDR.size:
        return ()
    headers = list(SHDR.iter_unpack(table))
    names_offset, names_size = headers[shstrndx][4:6]
    names = read(names_offset, min(names_size, MAX_NAMES_BYTES))

    def name(start: int) -> str:
        end = names.find(b"\0", start, start + 256)
        return names[start:end].decode("latin-1") if end >= 0 else ""

    return tuple(Section(name(h[0]), h[1], h[3], h[4], h[5]) for h in headers)


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
