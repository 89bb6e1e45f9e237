# SPDX-License-Identifier: Apache-2.0
"""ELF files that targets execute, opened once and early, and kept open after deletion and process exit.

All targets share the files.  Their number is limited; frames in a file beyond the limit have only module and
offset.
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

from ebpftrace.elf import ElfHeaders, NotElfError, Read, read_headers, reader
from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.files import FileKey, key_of
from ebpftrace.text import plural
from ebpftrace.unwind.unwind_image import memory_file

MAX_FILES = 4096
"""Limit of files that are kept open, if RLIMIT_NOFILE allows twice as many."""
MAX_USELESS = 4 * MAX_FILES
"""Limit of unusable files that are remembered in order not to open them again, and of paths with reasons."""
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
    def place(self) -> tuple[int, int]:
        """Device and inode."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    @property
    def read(self) -> Read:
        """Positioned reads of this file."""
        return reader(self.fd)


class FileStore:
    """Keeps files open until ``close``."""

    def __init__(self, limit: int = MAX_FILES) -> None:
        self._refused: dict[str, str] = {}
        may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = min(limit, may_open // 2)
        self._by_key: dict[FileKey, Optional[StoredFile]] = {}
        self._by_id: list[StoredFile] = []

    def __getitem__(self, file: int) -> StoredFile:
        return self._by_id[file]

    def add(self, key: FileKey, open_file: Callable[[], int]) -> Optional[StoredFile]:
        """The file of ``key``, opened by ``open_file`` if it is new; None if it is unusable.

        ``open_file`` may raise ``OSError`` or ``CannotTrace``.  A file that could not be opened is tried
        again next time; one that is not ELF is not.
        """
        if key in self._by_key:
            return self._by_key[key]
        if len(self._by_id) >= self._limit:
            self._refuse(key.path, f"no more than {plural(self._limit, 'file')} can be kept open")
            return None
        try:
            fd = open_file()
        except (OSError, CannotTrace):
            self._refuse(key.path, "the file cannot be opened")
            return None
        stored = self._examine(key.path, fd)
        if stored is None:
            os.close(fd)
            self._refuse(key.path, "no ELF file that can be read")
        else:
            self._by_id.append(stored)
            self._refused.pop(key.path, None)
        if stored is not None or len(self._by_key) < self._limit + MAX_USELESS:
            self._by_key[key] = stored
        return stored

    def add_open(self, fd: int) -> Optional[StoredFile]:
        """Add the file that is open as ``fd``, and close ``fd``; None if unusable.  Raises ``OSError``."""
        try:
            status = os.fstat(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - as /proc/PID/maps has it
            return self.add(key_of(status, path), lambda: os.dup(fd))
        finally:
            os.close(fd)

    def why_refused(self, path: str) -> str:
        """Why the code mapped from ``path`` can't be used."""
        return self._refused.get(path, "the file does not say which parts of it are code")

    def _refuse(self, path: str, why: str) -> None:
        if len(self._refused) < MAX_USELESS:
            self._refused[path] = why

    def add_vdso(self) -> Optional[StoredFile]:
        """Add the kernel's own library, read from this process, since all 64-bit processes have the same."""
        return self.add(FileKey("", 0, VDSO), _own_vdso)

    def _examine(self, path: str, fd: int) -> Optional[StoredFile]:
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
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
