# SPDX-License-Identifier: Apache-2.0
"""``.debug_frame`` as records of ``.eh_frame``: the unwind tables of code that is built without the latter.

A compiler told -fno-asynchronous-unwind-tables writes them for debuggers only, with -g.  Both hold the same
instructions (DWARF 5, section 6.4.1; LSB core, exception frames); they differ in how an entry names its
common part, and in what the common part says beside its instructions.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Optional

_COMMON = 0xFFFFFFFF
_PCREL, _INDIRECT = 0x10, 0x80
_FORMATS = {0x00: "<Q", 0x03: "<I", 0x04: "<Q", 0x0B: "<i", 0x0C: "<q"}
"""Of DW_EH_PE_*: absptr, udata4, udata8, sdata4, sdata8."""


class _Record(NamedTuple):
    at: int
    """Of its length field."""
    id_at: int
    end: int


def as_eh_frame(debug_frame: bytes, eh_frame: bytes, address: int) -> bytes:
    """The records of functions that ``eh_frame``, which lies at ``address``, has none for.

    What makes no sense is left out.
    """
    covered = sorted(_ranges(eh_frame, address))
    starts = [start for start, _ in covered]
    made = bytearray()
    common: dict[int, Optional[int]] = {}
    for record in _records(debug_frame):
        (cie,) = struct.unpack_from("<I", debug_frame, record.id_at)
        body = debug_frame[record.id_at + 4 : record.end]
        if cie == _COMMON or len(body) < 16:
            continue
        start, size = struct.unpack_from("<QQ", body)
        at = bisect_right(starts, start) - 1
        if (at >= 0 and start < covered[at][1]) or not size:
            continue
        if cie not in common:
            content = _common(debug_frame, cie)
            common[cie] = None if content is None else len(made)
            made += content or b""
        place = common[cie]
        if place is not None:
            made += _padded(struct.pack("<I", len(made) + 4 - place), body, b"\0")
    return bytes(made)


def _common(debug_frame: bytes, at: int) -> Optional[bytes]:
    """A CIE in the other form; None for one that says more than is known here."""
    record = next(_records(debug_frame, at), None)
    if record is None or debug_frame[record.id_at : record.id_at + 4] != b"\xff\xff\xff\xff":
        return None
    body = debug_frame[record.id_at + 4 : record.end]
    if len(body) < 6 or body[1] != 0:
        return None
    version, after = body[0], 2
    if version == 4:
        # Sizes of an address and of a segment selector, which the other form has not.
        if body[2:4] != b"\x08\x00":
            return None
        version, after = 3, 4
    if version not in (1, 3):
        return None
    return _padded(bytes(4), bytes((version, 0)) + body[after:], b"\0")


def _padded(identifier: bytes, body: bytes, padding: bytes) -> bytes:
    """A record; DW_CFA_nop is 0."""
    content = identifier + body
    content += padding * (-len(content) % 8 + 4 & 7)
    return struct.pack("<I", len(content)) + content


def _records(section: bytes, at: int = 0) -> Iterator[_Record]:
    """Those of 32-bit DWARF, from ``at`` on."""
    while at + 8 <= len(section):
        (length,) = struct.unpack_from("<I", section, at)
        end = at + 4 + length
        if length < 4 or length >= 0xFFFFFFF0 or end > len(section):
            return
        yield _Record(at, at + 4, end)
        at = end


def _ranges(eh_frame: bytes, address: int) -> Iterator[tuple[int, int]]:
    """[start, end) of the functions that have an entry in ``.eh_frame``."""
    encodings: dict[int, Optional[int]] = {}
    for record in _records(eh_frame):
        (pointer,) = struct.unpack_from("<I", eh_frame, record.id_at)
        if pointer == 0:
            continue
        cie = record.id_at - pointer
        if cie not in encodings:
            encodings[cie] = _encoding(eh_frame, cie)
        encoding = encodings[cie]
        if encoding is None or encoding & _INDIRECT or encoding & 0x70 not in (0, _PCREL):
            continue
        form = struct.Struct(_FORMATS.get(encoding & 0x0F, "<Q"))
        at = record.id_at + 4
        if at + 2 * form.size > record.end:
            continue
        start, size = (form.unpack_from(eh_frame, at + number * form.size)[0] for number in (0, 1))
        if encoding & _PCREL:
            start += address + at
        yield start & (1 << 64) - 1, (start + size) & (1 << 64) - 1


def _encoding(eh_frame: bytes, cie: int) -> Optional[int]:
    """How entries of a CIE write addresses: the letter R of its augmentation."""
    if not 0 <= cie <= len(eh_frame) - 16:
        return None
    end = eh_frame.find(b"\0", cie + 9, cie + 32)
    augmentation = eh_frame[cie + 9 : end] if end >= 0 else b""
    if not augmentation.startswith(b"z"):
        return 0 if augmentation == b"" else None
    at = end + 1
    for _ in range(2):
        at = _after_leb(eh_frame, at)
    at = at + 1 if eh_frame[cie + 8] == 1 else _after_leb(eh_frame, at)
    at = _after_leb(eh_frame, at)
    for letter in augmentation[1:]:
        if at >= len(eh_frame):
            return None
        if letter == ord("R"):
            return eh_frame[at]
        if letter == ord("P"):
            size = struct.calcsize(_FORMATS.get(eh_frame[at] & 0x0F, "<Q"))
            at += 1 + size
        elif letter == ord("L"):
            at += 1
        elif letter not in b"SB":
            return None
    return 0


def _after_leb(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1
