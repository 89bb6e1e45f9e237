# SPDX-License-Identifier: Apache-2.0
"""Function names from ELF symbol tables alone, for machines where drgn cannot be had.

Runs in the worker process, in the place of ``symbols``; and for ``symbols``, of files that drgn cannot read.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import Optional

from ebpftrace.elf import ElfHeaders, Read, read_headers, reader
from ebpftrace.unwind.copies import Name
from ebpftrace.unwind.demangle import demangle

MAX_TABLE_BYTES = 128 << 20
_SYMBOL = struct.Struct("<IBBHQQ")
_STT_FUNC, _STT_GNU_IFUNC = 2, 10


class SymbolTables:
    """Names for file addresses, as ``symbols.Symbolizer``, without lines and inlined functions."""

    def __init__(self) -> None:
        self._tables: dict[int, list[tuple[int, int, str]]] = {}
        self._build_ids: dict[int, object] = {}

    def add_file(  # the arguments of ``Symbolizer.add_file``
        self,
        file: int,
        path: str,  # noqa: ARG002
        fd: int,
        start: int,  # noqa: ARG002
        end: int,  # noqa: ARG002
        sections: Sequence[tuple[int, int]],  # noqa: ARG002
        has_all_symbols: bool,  # noqa: ARG002
    ) -> None:
        """Read a file's symbols; takes ownership of ``fd``.  Raises NotElfError and OSError."""
        try:
            headers = read_headers(reader(fd))
            self._build_ids[file] = headers.build_id
            self._tables[file] = _functions(reader(fd), headers)
        finally:
            os.close(fd)

    def wants_debug_file(self, file: int) -> bool:  # noqa: ARG002
        """A separate debug file has the full table where the file itself is stripped."""
        return True

    def add_debug_file(
        self,
        file: int,
        path: str,  # noqa: ARG002
        fd: int,
        checked: bool,
        build_id: Optional[bytes] = None,
    ) -> None:
        """Add the symbols of a debug file with the same build id; takes ownership of ``fd``.

        ``build_id`` is that of a file that was not added here itself.
        """
        try:
            headers = read_headers(reader(fd))
            if checked or headers.build_id == (build_id or self._build_ids.get(file)):
                merged = {*self._tables.get(file, ()), *_functions(reader(fd), headers)}
                self._tables[file] = sorted(merged)
        finally:
            os.close(fd)

    def wanted_supplement(self, file: int) -> None:
        """Symbol tables are never moved out of a debug file."""

    def names(self, file: int, address: int, exact: bool) -> Sequence[Name]:
        """The function that holds a file address, empty if none does."""
        table = self._tables.get(file, [])
        inside = address if exact else address - 1
        at = bisect_right(table, (inside, 1 << 64, ""))
        for start, size, name in reversed(table[max(at - 8, 0) : at]):
            if start <= inside < start + max(size, 1):
                return [Name(demangle(name), None, None, False, start)]
        return []


def _functions(read: Read, headers: ElfHeaders) -> list[tuple[int, int, str]]:
    """(address, size, name) of each function, ascending."""
    found: list[tuple[int, int, str]] = []
    for table_name, names_name in ((".symtab", ".strtab"), (".dynsym", ".dynstr")):
        table, strings = headers.section(table_name), headers.section(names_name)
        if table is None or strings is None or max(table.size, strings.size) > MAX_TABLE_BYTES:
            continue
        names = read(strings.offset, strings.size)
        raw = read(table.offset, table.size - table.size % _SYMBOL.size)
        raw = raw[: len(raw) - len(raw) % _SYMBOL.size]
        for name_at, info, _, section, address, size in _SYMBOL.iter_unpack(raw):
            if info & 15 in (_STT_FUNC, _STT_GNU_IFUNC) and section and address:
                end = names.find(b"\0", name_at, name_at + 4096)
                name = names[name_at:end].decode("utf-8", "surrogateescape")
                if end > name_at:
                    found.append((address, size, name.split("@", 1)[0]))
        if found:
            break
    return sorted(found)
