# SPDX-License-Identifier: Apache-2.0
"""Symbols and loaded segments of one ELF file that a target has mapped.

The file may be hostile: every count and size is limited before it is used, and string tables are searched
rather than decoded.
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import BinaryIO, Optional

from ebpftrace.elf import (
    ET_EXEC,
    PF_X,
    PT_INTERP,
    PT_LOAD,
    SHT_DYNSYM,
    SHT_NOBITS,
    SHT_SYMTAB,
    NotElfError,
    Read,
    SectionHeader,
    read_file_header,
    read_section_headers,
    read_segments,
    reader,
)
from ebpftrace.model import Vma
from ebpftrace.units import SMALLEST_PAGE
from ebpftrace.vmas import Vmas

_MAX_SECTIONS = 4096
_MAX_SEGMENTS = 256
_MAX_TABLE = 128 << 20
"""Bytes of one symbol or string table; larger ones (huge static binaries) are not read."""
_MAX_OCCURRENCES = 16
_SYMBOL = "I4xQ8x"
"""Elf64_Sym (elf(5)): st_name, then st_info, st_other, st_shndx skipped, st_value, st_size skipped."""
_SYMBOL_SIZE = 24
_MAX_INTERPRETER = 4096
"""Bytes of the interpreter's path (PATH_MAX)."""


@dataclass(frozen=True)
class Segment:
    """One PT_LOAD segment (elf(5)); units: bytes."""

    offset: int
    address: int
    size: int
    executable: bool = False


@dataclass(frozen=True)
class Image:
    """Link-time addresses of symbols in one ELF file, and its loaded segments."""

    order: str
    """Byte order as ``struct`` writes it: "<" or ">"."""
    segments: tuple[Segment, ...]
    symbols: dict[str, int]
    is_fixed: bool = False
    """A program that is loaded at its link-time address (ET_EXEC)."""

    def bias(self, vma: Vma) -> Optional[int]:
        """What to add to a link-time address, given one mapping of this file; None if it fits no segment."""
        for segment in self.segments:
            first = segment.offset - segment.offset % SMALLEST_PAGE
            if first <= vma.offset < segment.offset + segment.size:
                return vma.start - (segment.address + vma.offset - segment.offset)
        return None

    def to_bytes(self) -> bytes:
        """Serialize for the cache."""
        segments = [astuple(segment) for segment in self.segments]
        return json.dumps([self.order, segments, self.symbols, self.is_fixed]).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Image:
        """Read what ``to_bytes`` returned.  Raises ValueError for anything else."""
        try:
            order, segments, symbols, is_fixed = json.loads(raw)
            segments = tuple(Segment(*segment) for segment in segments)
            return cls(str(order), segments, dict(symbols), bool(is_fixed))
        except TypeError as error:
            raise ValueError("no image") from error


def read_image(file: BinaryIO, names: frozenset[str]) -> Optional[Image]:
    """Find ``names`` in ``.dynsym``, else in ``.symtab``; None if this is not a sound 64-bit ELF file."""
    status = os.fstat(file.fileno())
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return _read_image(_Identified(identity, file), names)


def is_fixed(file: BinaryIO) -> bool:
    """Whether an ELF file is a program that is loaded at its link-time address (elf(5), ET_EXEC)."""
    with suppress(NotElfError, OSError):
        return read_file_header(reader(file.fileno())).type == ET_EXEC
    return False


def read_interpreter(file: BinaryIO) -> Optional[str]:
    """Path of the loader that a 64-bit ELF file names; empty for a static one, None if it is not sound."""
    read = reader(file.fileno())
    try:
        for segment in read_segments(read, read_file_header(read), _MAX_SEGMENTS):
            if segment.type == PT_INTERP:
                name = read(segment.offset, min(segment.file_size, _MAX_INTERPRETER)).partition(b"\0")[0]
                return name.decode("utf-8", "surrogateescape")
    except (NotElfError, OSError):
        return None
    return ""


class _Identified:
    """A file as a cache key, by inode and time: 300 processes with one libc read it once."""

    def __init__(self, identity: tuple[int, int, int, int], file: BinaryIO) -> None:
        self.identity = identity
        self.file: Optional[BinaryIO] = file

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identified) and self.identity == other.identity


@lru_cache(maxsize=64)
def _read_image(identified: _Identified, names: frozenset[str]) -> Optional[Image]:
    # The cache keeps the key, which must not keep the file open.
    file, identified.file = identified.file, None
    assert file is not None
    try:
        return _parse(reader(file.fileno()), names)
    except (NotElfError, OSError):
        return None


def _parse(read: Read, names: frozenset[str]) -> Image:
    header = read_file_header(read)
    segments = tuple(
        Segment(segment.offset, segment.address, segment.file_size, bool(segment.flags & PF_X))
        for segment in read_segments(read, header, _MAX_SEGMENTS)
        if segment.type == PT_LOAD
    )
    sections = read_section_headers(read, header, min(header.shnum, _MAX_SECTIONS))
    symbols: dict[str, int] = {}
    for kind in (SHT_DYNSYM, SHT_SYMTAB):
        # A file has at most one of each (elf(5)).
        section = next((section for section in sections if section.type == kind), None)
        if section is not None and section.link < len(sections):
            wanted = _name_offsets(_table(read, sections[section.link]), names - symbols.keys())
            if wanted:
                symbols.update(_find(_table(read, section), header.order, wanted))
    return Image(header.order, segments, symbols, header.type == ET_EXEC)


def _table(read: Read, section: SectionHeader) -> bytes:
    if section.type == SHT_NOBITS or section.size > _MAX_TABLE:
        return b""
    return read(section.offset, section.size)


def _name_offsets(strings: bytes, names: frozenset[str]) -> dict[int, str]:
    """Offsets of each name in a string table; linkers may store a name as the tail of another."""
    offsets = {}
    for name in names:
        wanted = name.encode() + b"\0"
        at = strings.find(wanted)
        for _ in range(_MAX_OCCURRENCES):
            if at < 0:
                break
            offsets[at] = name
            at = strings.find(wanted, at + 1)
    return offsets


def _find(table: bytes, order: str, wanted: dict[int, str]) -> dict[str, int]:
    usable = len(table) - len(table) % _SYMBOL_SIZE
    found = struct.iter_unpack(order + _SYMBOL, memoryview(table)[:usable])
    return {wanted[name]: value for name, value in found if name in wanted and value}


def file_mappings(vmas: Vmas) -> list[Vma]:
    """The first executable mapping of each file, in order of address; the loader maps code once."""
    seen: dict[tuple[str, int], Vma] = {}
    for position, kind in enumerate(vmas.kinds):
        if kind.inode and "x" in kind.perms:
            seen.setdefault((kind.device, kind.inode), vmas[position])
    return list(seen.values())
