# SPDX-License-Identifier: Apache-2.0
"""Symbols and loaded segments of one ELF file that a target has mapped.

The file may be hostile: every count and size is limited before it is used, only headers are parsed by
pyelftools, and string tables are searched rather than decoded.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, Optional

from ebpftrace.model import Vma
from ebpftrace.vmas import Vmas

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

_MAX_SECTIONS = 4096
_MAX_SEGMENTS = 256
_MAX_TABLE = 128 << 20
"""Bytes of one symbol or string table; larger ones (huge static binaries) are not read."""
_MAX_OCCURRENCES = 16
_SYMBOL = "I4xQ8x"
"""Elf64_Sym (elf(5)): st_name, then st_info, st_other, st_shndx skipped, st_value, st_size skipped."""
_SYMBOL_SIZE = 24
_PF_X = 1
_ET_EXEC = 2
_HEADER_SIZE, _PHOFF_AT, _PHOFF_TO_PHNUM = 64, 32, "Q14xHH"
"""Elf64_Ehdr (elf(5)): its size, the offset of e_phoff, and the fields e_phoff, e_phentsize and e_phnum."""
_PROGRAM_HEADER, _PROGRAM_HEADER_SIZE, _PT_INTERP = "I4xQ16xQ16x", 56, 3
"""Elf64_Phdr: p_type, p_offset and p_filesz."""
_MAX_INTERPRETER = 4096
"""Bytes of the interpreter's path (PATH_MAX)."""
_PAGE = 4096
"""The least page size; segments are aligned at least to it."""


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
            if segment.offset - (segment.offset % _PAGE) <= vma.offset < segment.offset + segment.size:
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
    start = os.pread(file.fileno(), 18, 0)
    order = ">" if start[5:6] == b"\2" else "<"
    return start[:4] == b"\x7fELF" and struct.pack(f"{order}H", _ET_EXEC) == start[16:]


def read_interpreter(file: BinaryIO) -> Optional[str]:
    """Path of the loader that a 64-bit ELF file names; empty for a static one, None if it is not sound.

    It does without pyelftools, whose import takes longer than most traced commands run.
    """
    try:
        file.seek(0)
        start = file.read(_HEADER_SIZE)
        if start[:5] != b"\x7fELF\2":
            return None
        order = ">" if start[5:6] == b"\2" else "<"
        at, size, count = struct.unpack_from(order + _PHOFF_TO_PHNUM, start, _PHOFF_AT)
        for index in range(min(count, _MAX_SEGMENTS)):
            file.seek(at + index * size)
            kind, offset, length = struct.unpack(order + _PROGRAM_HEADER, file.read(_PROGRAM_HEADER_SIZE))
            if kind == _PT_INTERP:
                file.seek(offset)
                name = file.read(min(length, _MAX_INTERPRETER)).partition(b"\0")[0]
                return name.decode("utf-8", "surrogateescape")
    except (OSError, ValueError, OverflowError, struct.error):
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
    # pyelftools is slow to import, and a short trace may never read a file.
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError

    # The cache keeps the key, which must not keep the file open.
    file, identified.file = identified.file, None
    assert file is not None
    try:
        return _parse(file, names)
    except (ELFError, ConstructError, OSError, ValueError, OverflowError, struct.error):
        return None


def _parse(file: BinaryIO, names: frozenset[str]) -> Optional[Image]:
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(file)
    if elf.elfclass != 64:
        return None
    order = "<" if elf.little_endian else ">"
    segments = tuple(
        Segment(header["p_offset"], header["p_vaddr"], header["p_filesz"], bool(header["p_flags"] & _PF_X))
        for header in _headers(elf, "p", elf.structs.Elf_Phdr, _MAX_SEGMENTS)
        if header["p_type"] == "PT_LOAD"
    )
    sections = list(_headers(elf, "s", elf.structs.Elf_Shdr, _MAX_SECTIONS))
    symbols: dict[str, int] = {}
    for kind in ("SHT_DYNSYM", "SHT_SYMTAB"):
        # A file has at most one of each (elf(5)).
        section = next((section for section in sections if section["sh_type"] == kind), None)
        if section is not None and section["sh_link"] < len(sections):
            strings = _table(file, sections[section["sh_link"]])
            wanted = _name_offsets(strings, names - symbols.keys())
            if wanted:
                symbols.update(_find(_table(file, section), order, wanted))
    return Image(order, segments, symbols, elf.header["e_type"] == "ET_EXEC")


def _headers(elf: ELFFile, letter: str, layout: Any, limit: int) -> Iterator[dict[str, Any]]:
    """Program ("p") or section ("s") headers, at most ``limit``."""
    from elftools.common.utils import struct_parse

    header = elf.header
    count = header[f"e_{letter}hnum"]
    for index in range(min(count, limit)):
        position = header[f"e_{letter}hoff"] + index * header[f"e_{letter}hentsize"]
        yield struct_parse(layout, elf.stream, stream_pos=position)


def _table(file: BinaryIO, section: dict[str, Any]) -> bytes:
    if section["sh_type"] == "SHT_NOBITS" or section["sh_size"] > _MAX_TABLE:
        return b""
    file.seek(section["sh_offset"])
    return file.read(section["sh_size"])


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
