# SPDX-License-Identifier: Apache-2.0
"""Reads code that a JIT compiler made from the process while it lives.

It is in no file, and only its instructions show how it returns (``returns``), or what a JVM knows of it
(``hotspot``).  Both are read a moment later than the copy of the stack; code that has changed since is
recognized by return addresses without a call before them.
"""

from __future__ import annotations

import posixpath
from contextlib import suppress
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.memory import Memory
from ebpftrace.unwind.copies import PAGE, CompiledCode, MadePage
from ebpftrace.unwind.files import FileStore
from ebpftrace.unwind.hotspot import LIBRARY, HotSpot, UnknownJvmError
from ebpftrace.unwind.modules import Layout, Module


class MadeCode:
    """The JIT-compiled code of one process."""

    def __init__(self, pid: int, files: FileStore) -> None:
        self._pid = pid
        self._files = files
        self._memory: Optional[Memory] = None
        self._jvm: Optional[HotSpot] = None
        self._library: Optional[Module] = None
        """Of which ``_jvm`` was read, or None as it can't be."""

    def close(self) -> None:
        """Close the memory of the process."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._jvm = self._library = None

    def page(self, layout: Layout, address: int) -> MadePage:
        """The page at ``address``."""
        place = layout.find(address)
        if place is None or not place.is_made or address % PAGE:
            return MadePage()
        for _ in range(2):
            with suppress(CannotTrace):
                if self._memory is None:
                    self._memory = Memory(self._pid)
                content = self._memory.read_partial(address, PAGE)
                if len(content) == PAGE:
                    return MadePage(content, self._compiled(layout, address, self._memory))
            # After an exec, the address space that was opened is empty, so open the new one.
            self.close()
        return MadePage()

    def _compiled(self, layout: Layout, address: int, memory: Memory) -> tuple[CompiledCode, ...]:
        library = next((module for module in layout.modules if self._is_jvm(module)), None)
        if library != self._library:
            self._library, self._jvm = library, None
            if library is not None:
                file = self._files[library.file]
                with suppress(UnknownJvmError):
                    self._jvm = HotSpot(file.headers, file.read, library.bias, memory.read_partial)
        return () if self._jvm is None else tuple(self._jvm.code_in(address, address + PAGE))

    def _is_jvm(self, module: Module) -> bool:
        return posixpath.basename(self._files[module.file].path).startswith(LIBRARY)
