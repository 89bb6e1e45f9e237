# SPDX-License-Identifier: Apache-2.0
"""The small ELF image that the unwinder reads: program headers and ``.eh_frame``, nothing else.

What ``.debug_frame`` has beyond it is in that section as well (``debug_frame``).

Never handing a target's own file to the unwinding library has three reasons:

* drgn (0.3.0) takes ``.eh_frame`` only from sections of type SHT_PROGBITS, but the gold linker writes
  SHT_X86_64_UNWIND, and some files have no section headers at all.  Here both get the section it wants.
* The library maps files into memory; a target that cuts its file short would kill the reader.
* A file of 100 MB shrinks to its unwind table, and most ways to lie in headers are gone.
"""

from __future__ import annotations

import os
import struct
from typing import Optional

from ebpftrace.elf import (
    EHDR,
    PHDR,
    PT_GNU_EH_FRAME,
    PT_LOAD,
    SHDR,
    SHT_PROGBITS,
    SHT_X86_64_UNWIND,
    ElfHeaders,
    Read,
)
from ebpftrace.unwind.compressed import inflated
from ebpftrace.unwind.debug_frame import as_eh_frame

MAX_UNWIND_BYTES = 128 << 20
"""Largest ``.eh_frame`` taken; Chromium's is about a tenth."""

_SHT_STRTAB = 3
_SHF_ALLOC = 2
_PCREL_SDATA4 = 0x1B
"""DW_EH_PE_pcrel | DW_EH_PE_sdata4 (LSB core, exception frames): what every linker writes."""
_NAMES = b"\0.eh_frame\0.shstrtab\0"


def unwind_image(read: Read, headers: ElfHeaders, separate: bytes = b"") -> Optional[bytes]:
    """A minimal ELF file with the program headers and the unwind table of another.

    ``separate`` is the ``.debug_frame`` of its debug file.  None where there is no unwind table.
    Raises OSError from ``read``.
    """
    found = _from_section(read, headers) or _from_segment(read, headers)
    address, table = found or (0, b"")
    for debug_frame in (debug_frame_of(read, headers), separate):
        more = as_eh_frame(debug_frame, table, address) if debug_frame else b""
        if more:
            table = table[: _records_size(table)] + more + bytes(4)
    if not table:
        return None
    loads = headers.loads
    phoff = EHDR.size
    table_at = phoff + len(loads) * PHDR.size + 15 & ~15
    names_at = table_at + len(table)
    shoff = names_at + len(_NAMES) + 7 & ~7
    image = bytearray(shoff + 3 * SHDR.size)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    EHDR.pack_into(
        image,
        0,
        ident,
        headers.type,
        headers.machine,
        1,
        0,
        phoff,
        shoff,
        0,
        EHDR.size,
        PHDR.size,
        len(loads),
        SHDR.size,
        3,
        2,
    )
    for i, load in enumerate(loads):
        PHDR.pack_into(
            image,
            phoff + i * PHDR.size,
            PT_LOAD,
            load.flags,
            0,
            load.address,
            load.address,
            0,
            load.memory_size,
            1,
        )
    image[table_at:names_at] = table
    image[names_at : names_at + len(_NAMES)] = _NAMES
    SHDR.pack_into(
        image, shoff + SHDR.size, 1, SHT_PROGBITS, _SHF_ALLOC, address, table_at, len(table), 0, 0, 8, 0
    )
    SHDR.pack_into(image, shoff + 2 * SHDR.size, 11, _SHT_STRTAB, 0, 0, names_at, len(_NAMES), 0, 0, 1, 0)
    return bytes(image)


def memory_file(name: str, content: bytes) -> int:
    """A file in memory that only the caller can reach; returns its descriptor."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _from_section(read: Read, headers: ElfHeaders) -> Optional[tuple[int, bytes]]:
    section = headers.section(".eh_frame")
    if section is None or section.type not in (SHT_PROGBITS, SHT_X86_64_UNWIND):
        return None
    if not 0 < section.size <= MAX_UNWIND_BYTES:
        return None
    table = read(section.offset, section.size)
    return (section.address, table) if len(table) == section.size else None


def debug_frame_of(read: Read, headers: ElfHeaders) -> bytes:
    """The contents of ``.debug_frame``; empty if there is none.  Raises OSError from ``read``."""
    section = headers.section(".debug_frame") or headers.section(".zdebug_frame")
    if section is None or section.type != SHT_PROGBITS or not 0 < section.size <= MAX_UNWIND_BYTES:
        return b""
    return inflated(read(section.offset, section.size))


def _from_segment(read: Read, headers: ElfHeaders) -> Optional[tuple[int, bytes]]:
    """By PT_GNU_EH_FRAME, as the C++ run-time library finds it (LSB core, ``.eh_frame_hdr``)."""
    for header in headers.segments:
        if header.type != PT_GNU_EH_FRAME:
            continue
        raw = read(header.offset, 8)
        if len(raw) < 8 or raw[0] != 1 or raw[1] != _PCREL_SDATA4:
            continue
        address = header.address + 4 + int(struct.unpack_from("<i", raw, 4)[0])
        for load in headers.loads:
            inside = address - load.address
            if 0 <= inside < load.file_size:
                raw = read(load.offset + inside, min(load.file_size - inside, MAX_UNWIND_BYTES))
                table = raw[: _records_size(raw)]
                return (address, table) if table else None
    return None


def _records_size(table: bytes) -> int:
    """Bytes up to and without the zero terminator: each record starts with its length."""
    at = 0
    while at + 4 <= len(table):
        (length,) = struct.unpack_from("<I", table, at)
        if length == 0 or length == 0xFFFFFFFF or at + 4 + length > len(table):
            break
        at += 4 + length
    return at
