# SPDX-License-Identifier: Apache-2.0
"""What kind of memory a holder is in: which global variable, whose stack, the heap, or other memory."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import PurePosixPath
from typing import NamedTuple, Optional

from ebpftrace.elf import NotElfError, read_headers, reader
from ebpftrace.model import Heap, Holder, ThreadLists, Vma, Where
from ebpftrace.procfs.files import file_key, open_mapped_file
from ebpftrace.search.symbols import section_at, variables_at
from ebpftrace.search.threads import ThreadPlace
from ebpftrace.unwind.debugfiles import DebugFile, debug_files
from ebpftrace.unwind.files import FileStore, StoredFile
from ebpftrace.unwind.modules import load_bias
from ebpftrace.vmas import HEAP, RINGS, STACK, Vmas

_DESCRIPTOR = 4096
"""Bytes after the thread pointer that are the thread's descriptor: glibc's has 2304 (nptl/descr.h)."""
_PT_TLS = 7
_MAX_MODULES = 256
_UNNAMED = "/dev/zero"
"""The kernel's name for shared memory without a file (mm/shmem.c, shmem_zero_setup)."""
_MOST_INFORMATIVE_FIRST = (
    Where.GLOBAL,
    Where.TLS,
    Where.STACK,
    Where.REGISTER,
    Where.HEAP,
    Where.MAPPING,
    Where.SHARED,
    Where.KERNEL,
)


class _Block(NamedTuple):
    """A stack whose bounds are known."""

    start: int
    end: int
    tid: int
    descriptor: Optional[int]
    """None for the initial thread, whose descriptor is not on its stack."""


class Places:
    """Describes addresses in the memory of one process, as it was when ``vmas`` were read."""

    def __init__(
        self,
        pid: int,
        vmas: Vmas,
        thread_lists: ThreadLists,
        heaps: Sequence[Heap],
        threads: Iterable[ThreadPlace],
    ) -> None:
        self._pid = pid
        self._vmas = vmas
        self._heaps = heaps
        self._heap_starts = [heap.start for heap in heaps]
        threads = list(threads)
        self._names = {thread.tid: thread.name for thread in threads}
        own = {thread.inner_tid: thread.tid for thread in threads}
        blocks = [
            _Block(thread.stack.start, thread.stack.end, own.get(thread.tid, 0), thread.descriptor)
            for thread in thread_lists.threads
            if thread.stack is not None and not thread.exited
        ]
        blocks += [
            _Block(start, end, pid, None)
            for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds)
            if kind.path == STACK
        ]
        self._blocks = sorted(blocks)
        self._block_starts = [block.start for block in self._blocks]
        pointers = {thread.thread_pointer: thread.tid for thread in threads if thread.thread_pointer}
        pointers.update((block.descriptor, block.tid) for block in blocks if block.descriptor is not None)
        self._pointers = sorted(pointers.items())
        self._stack_pointers = sorted(
            (thread.stack_pointer, thread.tid) for thread in threads if thread.stack_pointer
        )
        self._modules = _Modules(pid, vmas)
        self._tls_size: Optional[int] = None

    def close(self) -> None:
        """Close the files that were opened for their symbols."""
        self._modules.close()

    def named(self, holders: Iterable[Holder]) -> dict[Holder, Holder]:
        """Map holders that have only an address to the same ones with all that is known about it."""
        named: dict[Holder, Holder] = {}
        globals_: list[tuple[Holder, Vma]] = []
        for holder in dict.fromkeys(holders):
            if holder.address is None:
                named[holder] = holder
                continue
            place, file = self._place(holder.address)
            named[holder] = place
            if file is not None:
                globals_.append((holder, file))
        symbols = self._modules.symbols([(holder.address or 0, file) for holder, file in globals_])
        for holder, _ in globals_:
            symbol = symbols.get(holder.address or 0, "")
            named[holder] = holder._replace(where=Where.GLOBAL if symbol else Where.MAPPING, symbol=symbol)
        return named

    def _place(self, address: int) -> tuple[Holder, Optional[Vma]]:
        """The holder for an address, and the mapped file whose data it is in, if any."""
        at = bisect_right(self._block_starts, address) - 1
        tls = self._of_tls(address)
        if tls is not None:
            return self._of_thread(Where.TLS, address, tls), None
        if at >= 0 and address < self._blocks[at].end:
            return self._of_thread(Where.STACK, address, self._blocks[at].tid), None
        at = bisect_right(self._heap_starts, address) - 1
        if at >= 0 and address < self._heaps[at].end:
            return Holder(Where.HEAP, address), None
        at = bisect_right(self._vmas.starts, address) - 1
        if at < 0 or address >= self._vmas.ends[at]:
            return Holder(Where.MAPPING, address), None
        kind = self._vmas.kinds[at]
        if kind.path == HEAP:
            return Holder(Where.HEAP, address), None
        if kind.path.startswith(RINGS):
            return Holder(Where.KERNEL, address, kind.path), None
        if not kind.perms.endswith("p"):
            return Holder(
                Where.SHARED, address, "" if kind.path.startswith(_UNNAMED) else _base(kind.path)
            ), None
        tid = self._stack_of(address, at)
        if tid:
            return self._of_thread(Where.STACK, address, tid), None
        return Holder(Where.MAPPING, address), self._file_of(at)

    def _of_thread(self, where: Where, address: int, tid: int) -> Holder:
        return Holder(where, address, "", tid or None, self._names.get(tid, ""))

    def _of_tls(self, address: int) -> Optional[int]:
        """The tid of the thread in whose thread-local storage or descriptor the address is; None if in none.

        Both are around the thread pointer: on x86-64 the variables are below it, on arm64 above (ELF Handling
        for Thread-Local Storage).
        """
        at = bisect_right(self._pointers, (address, 1 << 62)) - 1
        if at >= 0 and address - self._pointers[at][0] < _DESCRIPTOR:
            return self._pointers[at][1]
        if at + 1 < len(self._pointers):
            pointer, tid = self._pointers[at + 1]
            if pointer - address <= 1 << 20:
                if self._tls_size is None:
                    self._tls_size = self._modules.tls_size()
                if pointer - address <= self._tls_size:
                    return tid
        return None

    def _stack_of(self, address: int, position: int) -> int:
        """The only thread whose stack pointer is in this mapping, at or below the address; else 0."""
        start, end = self._vmas.starts[position], self._vmas.ends[position]
        first = bisect_right(self._stack_pointers, (start, 0))
        inside = [tid for pointer, tid in self._stack_pointers[first : first + 2] if pointer < end]
        return inside[0] if len(inside) == 1 and self._stack_pointers[first][0] <= address else 0

    def _file_of(self, position: int) -> Optional[Vma]:
        """The mapping of a file at this index, or the one directly before if this is its zeroed data."""
        vma = self._vmas[position]
        if vma.inode:
            return vma
        if position and not vma.path and self._vmas.ends[position - 1] == vma.start:
            before = self._vmas[position - 1]
            return before if before.inode and before.perms.endswith("p") else None
        return None


def most_informative(holders: Iterable[Holder]) -> tuple[Holder, ...]:
    """Order the holders: those that say most about what to fix come first."""
    rank = _MOST_INFORMATIVE_FIRST.index
    return tuple(sorted(holders, key=lambda holder: (rank(holder.where), holder.address or 0)))


class _Modules:
    """The ELF files of a process, their load addresses and their variables."""

    def __init__(self, pid: int, vmas: Vmas) -> None:
        self._pid = pid
        self._files = FileStore(_MAX_MODULES)
        self._held = ExitStack()
        self._held.callback(self._files.close)
        self._roots: Optional[list[int]] = None
        self._code: dict[tuple[str, int], list[Vma]] = {}
        for position, kind in enumerate(vmas.kinds):
            if kind.inode and "x" in kind.perms:
                self._code.setdefault((kind.device, kind.inode), []).append(vmas[position])

    def close(self) -> None:
        """Close the files."""
        self._held.close()

    def symbols(self, places: Iterable[tuple[int, Vma]]) -> dict[int, str]:
        """Address -> ``workers+0x10 in app_server``; missing if no code of the file is mapped."""
        by_file: dict[tuple[int, int], list[int]] = {}
        stored: dict[int, StoredFile] = {}
        for address, vma in places:
            loaded = self._loaded(address, vma)
            if loaded is not None:
                file, bias = loaded
                stored[file.id] = file
                by_file.setdefault((file.id, bias), []).append(address)
        found = {}
        for (number, bias), addresses in by_file.items():
            inside = [address - bias for address in addresses]
            names = self._variables(stored[number], inside)
            for address, at in zip(addresses, inside):
                name = names.get(at) or section_at(stored[number].headers, at) or f"{at:#x}"
                found[address] = f"{name} in {_base(stored[number].path)}"
        return found

    def tls_size(self) -> int:
        """Upper limit of the bytes of thread-local storage below a thread pointer, for all loaded files."""
        size = 0
        for mappings in list(self._code.values())[:_MAX_MODULES]:
            file = self._file(mappings[0])
            for segment in file.headers.segments if file is not None else ():
                if segment.type == _PT_TLS:
                    size += segment.memory_size + 64
        return size

    def _loaded(self, address: int, vma: Vma) -> Optional[tuple[StoredFile, int]]:
        """The file, and the address in memory minus the link-time address.

        The nearest code of the file determines it, because a page of the file may be mapped as data and as
        code, side by side.
        """
        code = self._code.get((vma.device, vma.inode))
        if not code:
            return None
        nearest = min(code, key=lambda mapped: abs(mapped.start - address))
        file = self._file(nearest)
        bias = None if file is None else load_bias(file.headers, nearest.start, nearest.offset, nearest.size)
        return None if file is None or bias is None else (file, bias)

    def _file(self, vma: Vma) -> Optional[StoredFile]:
        return self._files.add(file_key(vma), lambda: open_mapped_file(self._pid, vma))

    def _variables(self, file: StoredFile, addresses: Sequence[int]) -> dict[int, str]:
        found: dict[int, str] = {}
        with suppress(OSError, ValueError):
            found = variables_at(file.read, file.headers, addresses)
        left = [address for address in addresses if address not in found]
        if not left or file.headers.section(".symtab") is not None:
            return found
        names: dict[int, str] = {}
        for debug in debug_files(file, self._known_roots()):
            if not names:
                names = _variables_of_debug_file(debug, file, left)
            os.close(debug.fd)
        return {**found, **names}

    def _known_roots(self) -> list[int]:
        """Root directories to search for debug files: the target's and our own."""
        if self._roots is None:
            self._roots = []
            for path in (f"/proc/{self._pid}/root", "/"):
                with suppress(OSError):
                    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    self._held.callback(os.close, fd)
                    self._roots.append(fd)
        return self._roots


def _variables_of_debug_file(debug: DebugFile, file: StoredFile, addresses: Sequence[int]) -> dict[int, str]:
    with suppress(NotElfError, OSError, ValueError):
        read = reader(debug.fd)
        headers = read_headers(read)
        if debug.checked or headers.build_id == file.headers.build_id:
            return variables_at(read, headers, addresses)
    return {}


def _base(path: str) -> str:
    return PurePosixPath(path.removesuffix(" (deleted)")).name
