# SPDX-License-Identifier: Apache-2.0
"""Tier 2: names of code addresses, by debug info and symbol tables (drgn).

Runs in the worker process.  One program serves all targets: each distinct file is in it once, at a
made-up address, so its debug info is indexed once and names are cached by file and file address.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Optional

import drgn

from ebpftrace.elf import NotElfError
from ebpftrace.unwind.copies import Name
from ebpftrace.unwind.debuginfo import DebugInfo, libdw
from ebpftrace.unwind.demangle import demangle, is_mangled
from ebpftrace.unwind.symtab import SymbolTables

_FIRST_BASE = 1 << 32
_GAP = 1 << 21
MAX_INLINED = 64
"""Inlined frames taken per address; more is not what a compiler makes."""
MAX_NAME = 1024


class Supplement(NamedTuple):
    """A file with the debug info that several debug files share (``.gnu_debugaltlink``)."""

    path: str
    """As the debug file spells it: absolute, or relative to the debug file."""
    build_id: str


@dataclass
class _File:
    module: Any
    bias: int
    sections: Sections
    has_all_symbols: bool
    debug: Optional[DebugInfo] = None


class _Symbol(NamedTuple):
    name: str
    start: int


Sections = Sequence[tuple[int, int]]
"""Where the sections of a file lie: [start, end), file addresses."""


class Symbolizer:
    """Names for file addresses of the files given to ``add_file``."""

    def __init__(self) -> None:
        self._program = drgn.Program(drgn.host_platform)
        # The default would also ask a server on the network (debuginfod).
        self._program.set_enabled_debug_info_finders([])
        self._files: dict[int, _File] = {}
        self._tables = SymbolTables()
        """Of what drgn does not take: files without section headers, and debug files without DWARF."""
        self._next_base = _FIRST_BASE
        with suppress(OSError):
            libdw()  # while this process may still read where it is loaded

    def add_file(
        self, file: int, path: str, fd: int, start: int, end: int, sections: Sections, has_all_symbols: bool
    ) -> None:
        """Load a file whose segments span [start, end) of its own addresses; takes ownership of ``fd``.

        ``has_all_symbols``: also those of its own use (``.symtab``), not only what it exports.
        Raises what drgn raises on bad data.
        """
        base = self._next_base + start % 4096
        self._next_base += (end - start + 2 * _GAP) // _GAP * _GAP
        module = self._program.extra_module(path, file, create=True)
        module.address_range = (base, base + end - start)
        self._files[file] = _File(module, base - start, sections, has_all_symbols)
        if not sections:
            with suppress(NotElfError, OSError):
                self._tables.add_file(file, path, os.dup(fd), start, end, sections, has_all_symbols)
        own = os.dup(fd)
        try:
            module.try_file(path, fd=fd, force=True)
            if not self.wants_debug_file(file):
                self._files[file].debug = _debug_info(own)
        finally:
            os.close(own)

    def wants_debug_file(self, file: int) -> bool:
        """The file itself has no debug info."""
        return bool(self._files[file].module.wants_debug_file())

    def add_debug_file(self, file: int, path: str, fd: int, checked: bool) -> None:
        """Offer a separate debug file; takes ownership of ``fd``.

        drgn takes it only with the same build id, unless the caller ``checked`` that it belongs to the
        file.  Raises what drgn raises on bad data.
        """
        known = self._files[file]
        supplemented = known.debug if self.wanted_supplement(file) is not None else None
        own = os.dup(fd)
        try:
            known.module.try_file(path, fd=fd, force=checked)
            if supplemented is not None:
                if not self.wants_debug_file(file):
                    supplemented.add_supplement(os.dup(own))
            elif not self.wants_debug_file(file) or self.wanted_supplement(file) is not None:
                known.debug = _debug_info(own)
            else:
                # drgn takes none without DWARF; it may have the symbols that were stripped all the same.
                with suppress(NotElfError, OSError):
                    build_id = known.module.build_id
                    self._tables.add_debug_file(file, path, os.dup(own), checked, build_id)
        finally:
            os.close(own)

    def wanted_supplement(self, file: int) -> Optional[Supplement]:
        """What dwz(1) moved out of the debug file just offered, if that is missing."""
        try:
            wanted = self._files[file].module.wanted_supplementary_debug_file()
        except ValueError:
            return None
        return Supplement(wanted.supplementary_path, wanted.checksum.hex())

    def names(self, file: int, address: int, exact: bool) -> Sequence[Name]:
        """Functions at a file address, innermost first; empty if nothing is known.

        ``exact`` as in ``copies.Pc``: a return address is looked up inside the call before it.
        """
        at = self._files[file].bias + address
        symbol = self._symbol(file, at if exact else at - 1)
        if symbol is None and not exact:
            # Signal return (__restore_rt) is entered by a pushed address: nothing of it lies before.
            symbol = self._symbol(file, at)
        frames = self._frames(file, at if exact else at - 1)
        if symbol is None and not frames:
            return self._tables.names(file, address, exact)
        if symbol is None:
            return frames
        start = symbol.start - self._files[file].bias
        if not frames:
            return [Name(demangle(symbol.name), None, None, False, start)]
        physical = frames[-1]._replace(start=start)
        if physical.function is None or is_mangled(symbol.name):
            # Debug info says "run" where the symbol says "Pool<int>::run(int)".
            physical = physical._replace(function=demangle(symbol.name)[:MAX_NAME])
        frames[-1] = physical
        return frames

    def _symbol(self, file: int, address: int) -> Optional[_Symbol]:
        try:
            symbol = self._program.symbol(address)
        except LookupError:
            return None
        # drgn gives the nearest one below where none holds the address.
        if symbol.size:
            is_of_it = 0 <= address - symbol.address < symbol.size
        else:
            is_of_it = self._ends_later(self._files[file], symbol.address, address)
        if not is_of_it:
            return None
        name = symbol.name.split("@", 1)[0][: MAX_NAME * 4]
        return _Symbol(name, symbol.address) if name else None

    def _ends_later(self, file: _File, start: int, address: int) -> bool:
        """Assembly without a size goes on to the next symbol, if we know of all, or to its section's end."""
        if not file.has_all_symbols and file.module.wants_debug_file():
            return False
        first, second = start - file.bias, address - file.bias
        return any(begin <= first <= second < end for begin, end in file.sections)

    def _frames(self, file: int, address: int) -> list[Name]:
        debug = self._files[file].debug
        found = [] if debug is None else debug.names(address - self._files[file].bias)
        return found or self._frames_by_drgn(address)

    def _frames_by_drgn(self, address: int) -> list[Name]:
        frames = []
        # A return address is looked up in the call before it.
        for frame in islice(self._program.stack_trace_from_pcs([address + 1]), MAX_INLINED):
            try:
                source = frame.source()
                file, line = source.filename or None, source.line or None
            except LookupError:
                file, line = None, None
            name = frame.function_name
            if name is None and file is None:
                continue
            frames.append(Name(name[:MAX_NAME] if name else None, file, line, frame.is_inline))
        return frames


def _debug_info(fd: int) -> Optional[DebugInfo]:
    with suppress(OSError):
        return DebugInfo(os.dup(fd))
    return None
