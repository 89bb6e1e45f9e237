"""ELF files that targets run, opened once, early, and kept: they outlive deletion and process.

Distinct files are shared by all targets.  What is kept is bounded; a file beyond the bound is counted
and its frames show module and offset only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.process.files import FileKey
from ebpftrace.stacks.elf import ElfHeaders, NotElfError, Read, read_headers
from ebpftrace.stacks.unwind_image import memory_file

MAX_FILES = 4096
"""Files kept, if the process may open twice as many."""
VDSO = "[vdso]"
_VDSO_LIMIT = 64 << 10


@dataclass(frozen=True)
class StoredFile:
    """One open ELF file."""

    id: int
    path: str
    fd: int
    headers: ElfHeaders

    @property
    def read(self) -> Read:
        """Positioned reads of this file."""
        return reader(self.fd)


def reader(fd: int) -> Read:
    """Positioned reads of a file; offsets that no file has read as its end."""
    return lambda offset, count: os.pread(fd, count, offset) if offset < 1 << 62 else b""


class FileStore:
    """Keeps files open until ``close``; ``refused`` counts those that could not be kept or read."""

    def __init__(self, limit: int = MAX_FILES) -> None:
        self.refused = 0
        may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = min(limit, may_open // 2)
        self._by_key: dict[FileKey, Optional[StoredFile]] = {}
        self._by_id: list[StoredFile] = []

    def __getitem__(self, file: int) -> StoredFile:
        return self._by_id[file]

    def add(self, key: FileKey, open_file: Callable[[], int]) -> Optional[StoredFile]:
        """The file of ``key``, opened by ``open_file`` if it is new; None if it is of no use.

        ``open_file`` may raise OSError or CannotTrace.  A file that could not be opened is tried
        again next time, one that is not ELF is not.
        """
        if key in self._by_key:
            return self._by_key[key]
        if len(self._by_id) >= self._limit:
            self.refused += 1
            return None
        try:
            fd = open_file()
        except (OSError, CannotTrace):
            self.refused += 1
            return None
        stored = self._examine(key.path, fd)
        if stored is None:
            self.refused += 1
            os.close(fd)
        else:
            self._by_id.append(stored)
        self._by_key[key] = stored
        return stored

    def add_vdso(self) -> Optional[StoredFile]:
        """The kernel's own library: the same for every 64-bit process, so ours is taken."""
        return self.add(FileKey("", 0, VDSO), _own_vdso)

    def _examine(self, path: str, fd: int) -> Optional[StoredFile]:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            return StoredFile(len(self._by_id), path, fd, read_headers(reader(fd)))
        except (NotElfError, OSError):
            return None

    def close(self) -> None:
        """Close every file."""
        for stored in self._by_id:
            with suppress(OSError):
                os.close(stored.fd)
        self._by_key.clear()
        self._by_id.clear()


def _own_vdso() -> int:
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        if line.endswith(VDSO):
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            return memory_file("vdso", ctypes.string_at(start, min(end - start, _VDSO_LIMIT)))
    raise OSError(2, "no vdso")
