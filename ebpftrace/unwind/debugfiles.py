# SPDX-License-Identifier: Apache-2.0
"""Separate debug info of a file: by build id or ``.gnu_debuglink``, on the host and in the target's root.

Places as gdb documents them ("Debugging Information in Separate Files").  A file in the target's root
counts only with the right build id or checksum; nothing is fetched from a network.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import NamedTuple, Optional

from ebpftrace.elf import MAGIC
from ebpftrace.procfs.files import open_in_root
from ebpftrace.unwind.files import StoredFile

DEBUG_ROOT = "/usr/lib/debug"
MAX_CHECKED_BYTES = 256 << 20
"""Largest debug file whose checksum is computed: hundreds of files may each name one that is all holes."""
_DELETED = " (deleted)"


class DebugFile(NamedTuple):
    """A candidate; the descriptor is the caller's to close."""

    path: str
    fd: int
    checked: bool
    """Its checksum was right; else the reader has to compare build ids."""


class _Link(NamedTuple):
    name: str
    checksum: int


def debug_files(file: StoredFile, roots: Sequence[int]) -> Iterator[DebugFile]:
    """Candidates for a file's debug info, best first, in each of ``roots`` (directory descriptors)."""
    build_id = file.headers.build_id
    link = _debug_link(file)
    for root in roots:
        if build_id is not None:
            with suppress(OSError):
                path = _build_id_path(build_id.hex())
                yield DebugFile(path, _open_elf(root, path), False)
        if link is not None:
            for path in _link_paths(file.path, link.name):
                with suppress(OSError):
                    fd = _open_elf(root, path)
                    if _is_linked(fd, file, link):
                        yield DebugFile(path, fd, build_id is None)
                    else:
                        os.close(fd)


def supplements(debug_path: str, path: str, build_id: str, roots: Sequence[int]) -> Iterator[DebugFile]:
    """Candidates for what dwz(1) moved out of the file at ``debug_path``; the reader compares build ids.

    ``path`` and ``build_id`` (hex) are what the debug file says of it.
    """
    for root in roots:
        for place in (str(PurePosixPath(debug_path).parent / path), _build_id_path(build_id)):
            with suppress(OSError):
                yield DebugFile(place, _open_elf(root, place), False)


def _open_elf(root: int, path: str) -> int:
    """Open a file that begins like ELF: a target may have named any, of the host's too.  Raises OSError."""
    fd = open_in_root(root, path)
    with suppress(OSError):
        if os.pread(fd, len(MAGIC), 0) == MAGIC:
            return fd
    os.close(fd)
    raise OSError(errno.ENOEXEC, "no ELF file", path)


def _is_linked(fd: int, file: StoredFile, link: _Link) -> bool:
    """The debug link may mean this one: it has the right checksum, or will be judged by its build id."""
    try:
        if os.path.sameopenfile(fd, file.fd):
            return False
        return file.headers.build_id is not None or _checksum(fd) == link.checksum
    except OSError:
        return False


def _build_id_path(digits: str) -> str:
    return f"{DEBUG_ROOT}/.build-id/{digits[:2]}/{digits[2:]}.debug"


def _link_paths(path: str, name: str) -> list[str]:
    if path.endswith(_DELETED):
        path = path[: -len(_DELETED)]
    directory = PurePosixPath(path).parent
    if not directory.is_absolute() or ".." in directory.parts:
        return []
    return [f"{directory}/{name}", f"{directory}/.debug/{name}", f"{DEBUG_ROOT}{directory}/{name}"]


def _debug_link(file: StoredFile) -> Optional[_Link]:
    section = file.headers.section(".gnu_debuglink")
    if section is None or not 8 <= section.size <= 4096:
        return None
    try:
        raw = file.read(section.offset, section.size)
    except OSError:
        return None
    end = raw.find(b"\0")
    name = os.fsdecode(raw[:end])
    if end <= 0 or "/" in name or len(raw) < 8:
        return None
    return _Link(name, int(struct.unpack("<I", raw[-4:])[0]))


def _checksum(fd: int) -> Optional[int]:
    if os.fstat(fd).st_size > MAX_CHECKED_BYTES:
        return None
    checksum, at = 0, 0
    while True:
        chunk = os.pread(fd, 1 << 20, at)
        if not chunk:
            return checksum
        checksum, at = zlib.crc32(chunk, checksum), at + len(chunk)
