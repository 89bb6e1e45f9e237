# SPDX-License-Identifier: Apache-2.0
"""Contents of a section of debug information, which may be compressed (gABI, "Section Compression").

Zstandard has no module in Python before 3.14; the library is the one that drgn has loaded, or the system's.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

MAX_BYTES = 128 << 20
_HEADER = struct.Struct("<IIQQ")
"""Elf64_Chdr: type, reserved, size, alignment."""
_OF_GNU = struct.Struct(">4sQ")
"""The form of sections that are called .zdebug_*: magic and size (binutils, bfd/compress.c)."""
_ZLIB, _ZSTD = 1, 2
_GNU_MAGIC = b"ZLIB"


def inflated(section: bytes) -> bytes:
    """The contents of ``.debug_frame`` or ``.zdebug_frame``; empty if they can't be decompressed.

    A section that is not compressed begins with the length of a record, which is never as small as the types
    of compression, nor as large as the magic number.
    """
    if len(section) < _HEADER.size:
        return section
    magic, size = _OF_GNU.unpack_from(section)
    if magic == _GNU_MAGIC:
        return _by_zlib(section[_OF_GNU.size :], size)
    kind, reserved, size, _ = _HEADER.unpack_from(section)
    if reserved or kind not in (_ZLIB, _ZSTD):
        return section
    return (_by_zlib if kind == _ZLIB else _by_zstd)(section[_HEADER.size :], size)


def _by_zlib(data: bytes, size: int) -> bytes:
    with suppress(zlib.error):
        if 0 < size <= MAX_BYTES:
            return zlib.decompressobj().decompress(data, size)
    return b""


def _by_zstd(data: bytes, size: int) -> bytes:
    with suppress(OSError, AttributeError, MemoryError):
        if 0 < size <= MAX_BYTES:
            library = _libzstd()
            decompressed = ctypes.create_string_buffer(size)
            written = library.ZSTD_decompress(decompressed, size, data, len(data))
            return b"" if library.ZSTD_isError(written) else decompressed.raw[:written]
    return b""


@lru_cache(maxsize=1)
def _libzstd() -> Any:
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    path = next((line.split()[-1] for line in maps.splitlines() if "/libzstd" in line), "libzstd.so.1")
    library = ctypes.CDLL(path)
    pointer, length = ctypes.c_void_p, ctypes.c_size_t
    library.ZSTD_decompress.restype = length
    library.ZSTD_decompress.argtypes = [pointer, length, ctypes.c_char_p, length]
    library.ZSTD_isError.argtypes = [length]
    return library
