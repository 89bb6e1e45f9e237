# SPDX-License-Identifier: Apache-2.0
"""Readers of ELF files.  drgn reads them too, confined in the worker: tests/kernel/test_stacks_hostile.py."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ebpftrace.elf import NotElfError, read_headers, reader
from ebpftrace.model import Vma
from ebpftrace.nptl.lists import SYMBOLS, lists_of_image
from ebpftrace.nptl.struct_pthread import Format
from ebpftrace.nptl.symbols import read_image
from ebpftrace.unwind.debugfiles import debug_files
from ebpftrace.unwind.files import FileStore, StoredFile
from ebpftrace.unwind.modules import load_bias
from ebpftrace.unwind.symtab import SymbolTables
from ebpftrace.unwind.unwind_image import memory_file, unwind_image
from fuzz.memory import BASE, MemoryOf
from fuzz.reader import MAX_BYTES, Reader

_MAX_SEEDS = 6
_NAMES = SYMBOLS | {"__vdso_getcpu", "__kernel_clock_gettime"}
"""The last two are the vdso's, on x86-64 and arm64."""


def _seeds() -> Sequence[bytes]:
    """The kernel's vdso, and the smallest of the libraries beside the C library."""
    store = FileStore()
    vdso = store.add_vdso()
    found = [vdso.read(0, MAX_BYTES)] if vdso is not None else []
    store.close()
    mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    library = next((Path(path) for path in mapped if "/libc.so" in path), Path("/lib/libc.so"))
    small = (path for path in library.parent.glob("lib*.so*") if path.stat().st_size < MAX_BYTES // 2)
    files = sorted({path.resolve() for path in small}, key=lambda path: path.stat().st_size)
    return [*found, *(path.read_bytes() for path in files[:_MAX_SEEDS])]


@lru_cache(maxsize=1)
def empty_root() -> int:
    """A directory in which there is nothing, and which is nowhere: a target's root."""
    path = tempfile.mkdtemp()
    root = os.open(path, os.O_PATH)
    Path(path).rmdir()
    return root


def _thread_lists(data: bytes) -> object:
    """The image of a C library, and the thread lists that it describes, in memory with the same bytes."""
    with os.fdopen(memory_file("fuzz", data), "rb") as file:
        image = read_image(file, _NAMES)
    if image is None:
        return None
    assert set(image.symbols) <= _NAMES
    vma = Vma(BASE, BASE + len(data), "r-xp", 0, "08:01", 7, "/lib/libc.so.6")
    found = lists_of_image(image, vma, MemoryOf(data), False)
    if found is not None:
        form = Format(found, None)
        form.unpack(BASE, bytes(form.size))
    return image.symbols


def _headers(data: bytes) -> object:
    fd = memory_file("fuzz", data)
    try:
        headers = read_headers(reader(fd))
        for load in headers.loads:
            load_bias(headers, BASE, load.offset, load.file_size)
        assert headers.start < headers.end
        image = unwind_image(reader(fd), headers)
        if image is not None:
            read_headers(lambda offset, count: image[offset : offset + count])
        return headers.sections or headers.build_id
    finally:
        os.close(fd)


def _symbols(data: bytes) -> object:
    tables = SymbolTables()
    tables.add_file(1, "", memory_file("fuzz", data), 0, 0, (), False)
    tables.add_debug_file(1, "", memory_file("fuzz", data), False)
    return [tables.names(1, address, False) for address in range(0, MAX_BYTES, 1024)]


def _debug_files(data: bytes) -> object:
    """Also the target's path of the file is the fuzzer's: the last bytes."""
    fd = memory_file("fuzz", data)
    try:
        path = os.fsdecode(data[-64:])
        stored = StoredFile(0, path, fd, read_headers(reader(fd)))
        assert not list(debug_files(stored, [empty_root()])), "a file in an empty root"
        return stored.headers.section(".gnu_debuglink") or stored.headers.build_id
    finally:
        os.close(fd)


READERS = (
    Reader("elf-thread-lists", _thread_lists, _seeds),
    Reader("elf-headers", _headers, _seeds, (NotElfError, OSError)),
    Reader("elf-symbols", _symbols, _seeds, (NotElfError, OSError)),
    Reader("elf-debug-files", _debug_files, _seeds, (NotElfError, OSError)),
)
