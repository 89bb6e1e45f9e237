# SPDX-License-Identifier: Apache-2.0
"""The code that a process has mapped, and had mapped before: a history of its modules.

A copy is unwound some time after it was made; meanwhile libraries may be loaded (dlopen) or unloaded
(dlclose), or the process may exit.  So each reading of the process's maps is kept with its time, and a copy
is unwound with the readings directly before and after it.  Executed files that the BPF program reported are
added at their time, for the time between readings and for processes that exit before the first.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Optional

from ebpftrace.elf import PF_X, PT_INTERP, ElfHeaders, Segment
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Vma
from ebpftrace.procfs.files import FileKey, file_key, is_file, names, open_in_root, open_mapped_file
from ebpftrace.procfs.maps import read_maps
from ebpftrace.units import SMALLEST_PAGE
from ebpftrace.unwind.files import VDSO, FileStore, StoredFile
from ebpftrace.vmas import MEMORY_FILES

MAX_LAYOUTS = 512
"""Limit of readings for one process; the first is kept, and the oldest of the others is dropped."""
MAX_RANGES = 1 << 18
"""Limit of the ranges in all readings (50 MiB); one reading has at most as many as a process has mappings."""
_REST = 10
"""After reading the maps for an unknown address, wait this many times as long as it took."""


_AT_BASE, _AT_ENTRY, _AT_SYSINFO_EHDR = 7, 9, 33  # include/uapi/linux/auxvec.h
_MAX_PATH = 4096
"""PATH_MAX (include/uapi/linux/limits.h)."""


class CodeRange(NamedTuple):
    """Executable memory, [start, end)."""

    start: int
    end: int
    path: str
    """As /proc/PID/maps prints it, empty for JIT code, also where that is in shared memory."""
    file: Optional[int]
    """Id in the FileStore; None without a usable file."""
    bias: int
    """Address in the process minus link-time address."""
    offset: int
    """Offset in the file of the byte at ``start``."""

    @property
    def is_made(self) -> bool:
        """Whether a JIT compiler made it: it is of no file."""
        return self.file is None and not self.path


class Module(NamedTuple):
    """One load of one ELF file."""

    file: int
    bias: int


@dataclass(frozen=True)
class Layout:
    """The code of a process at one time: disjoint ranges, ascending."""

    ranges: tuple[CodeRange, ...]
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(r.start for r in self.ranges))

    def find(self, address: int) -> Optional[CodeRange]:
        """The range that contains ``address``; None if there is none."""
        at = bisect_right(self._starts, address) - 1
        return self.ranges[at] if at >= 0 and address < self.ranges[at].end else None

    @property
    def modules(self) -> tuple[Module, ...]:
        """The loaded files, once for each load address."""
        return tuple(dict.fromkeys(Module(r.file, r.bias) for r in self.ranges if r.file is not None))

    def over(self, other: Layout) -> Layout:
        """This layout, with those ranges of the other one that do not overlap it.

        Of code without a file it is the parts that do not overlap, since JIT compilers let it grow.
        """
        if self == other:
            return self
        free = [part for r in other.ranges for part in self._free_parts(r)]
        return Layout(_joined(sorted((*self.ranges, *free)))) if free else self

    def _free_parts(self, new: CodeRange) -> list[CodeRange]:
        parts = []
        start = new.start
        for r in self.ranges[max(bisect_right(self._starts, start) - 1, 0) :]:
            if r.start >= new.end:
                break
            if r.start > start:
                parts.append(new._replace(start=start, end=r.start))
            start = max(start, r.end)
        if start < new.end:
            parts.append(new._replace(start=start))
        return parts if new.is_made or parts == [new] else []


class ModuleHistory:
    """The layouts of one process; its files are opened as soon as they are seen."""

    def __init__(self, pid: int, files: FileStore, root: Optional[int] = None) -> None:
        """``root`` is a descriptor of its root directory, for files that the BPF program reports."""
        self.root = root
        self._pid = pid
        self._files = files
        self._since: list[int] = []
        self._layouts: list[Layout] = []
        self._announced: list[Optional[Layout]] = []
        """Ranges that the BPF program reported, to be put over the layout before; None for a reading."""
        self._next_reading = 0.0
        self.version = 0
        """Number of changes of the code so far."""
        self._merge = lru_cache(maxsize=8)(Layout.over)

    def refresh(self, at: Optional[int] = None, vmas: Optional[Sequence[Vma]] = None) -> bool:
        """Read the maps, or take ``vmas`` that were read; True if the code differs from the last reading.

        ``at`` (CLOCK_MONOTONIC ns) is the time from which on this layout is valid, such as that of an exec or
        of the mmap of a library, by default now.  If the process has exited, nothing changes.
        """
        # The time is taken before the reading, since code that is mapped during the reading may be missed.
        since = time.monotonic_ns() if at is None else at
        if vmas is None:
            try:
                vmas = read_maps(self._pid)
            except CannotTrace:
                return False
        layout = self._layout(vmas)
        if not layout.ranges or (self._layouts and layout == self._layouts[-1]):
            return False
        if self._since:
            since = max(since, self._since[-1])
        self._insert(len(self._since), since, layout)
        self._forget()
        return True

    def mapped(self, vma: Vma, at: int) -> None:
        """Record a mapping and its time (CLOCK_MONOTONIC ns); its ``path`` is relative to ``root``."""
        self._enter(self._image(vma), at)
        self._forget()

    def executed(self, key: FileKey, auxv: Mapping[int, int], at: int) -> None:
        """Record that the process began to execute a program, which replaced all code.

        ``auxv`` is its auxiliary vector, with the addresses of program and interpreter (getauxval(3)).
        """
        program = self._files.add(key, lambda: self._open(key))
        if program is None:
            return
        ranges = _code_of(program, key.path, auxv.get(_AT_ENTRY, 0) - program.headers.entry)
        interpreter = self._interpreter(program)
        if interpreter is not None:
            ranges += _code_of(interpreter, interpreter.path, auxv.get(_AT_BASE, 0))
        vdso = self._files.add_vdso() if auxv.get(_AT_SYSINFO_EHDR) else None
        if vdso is not None:
            ranges += _code_of(vdso, VDSO, auxv[_AT_SYSINFO_EHDR] - vdso.headers.start)
        self._insert(bisect_right(self._since, at), at, Layout(_disjoint(ranges)))
        self._forget()

    def _enter(self, ranges: Sequence[CodeRange], at: int) -> None:
        """Replace the code at these ranges, from a time on and until the next reading."""
        index = bisect_right(self._since, at)
        announced = Layout(_disjoint(ranges))
        layout = announced.over(self._layouts[index - 1]) if index else announced
        if index and index == len(self._layouts) and layout == self._layouts[-1]:
            return
        self._insert(index, at, layout, announced)
        # The events of two threads may arrive in the wrong order.
        for later in range(index + 1, len(self._layouts)):
            over = self._announced[later]
            if over is None:
                break
            self._layouts[later] = over.over(self._layouts[later - 1])

    def _insert(self, index: int, since: int, layout: Layout, announced: Optional[Layout] = None) -> None:
        self.version += 1
        self._since.insert(index, since)
        self._layouts.insert(index, layout)
        self._announced.insert(index, announced)

    def _forget(self) -> None:
        while len(self._layouts) > 2 and (len(self._layouts) > MAX_LAYOUTS or self._kept_ranges > MAX_RANGES):
            del self._since[1], self._layouts[1], self._announced[1]

    def _image(self, vma: Vma) -> list[CodeRange]:
        """The code in a mapping; the loader first maps a file as a whole."""
        key = file_key(vma)
        stored = self._files.add(key, lambda: self._open(key))
        bias = None if stored is None else load_bias(stored.headers, vma.start, vma.offset, vma.size)
        if stored is None or bias is None:
            return [_without_file(vma)]
        return [
            one._replace(start=start, end=end, offset=vma.offset + start - vma.start)
            for one in _code_of(stored, vma.path, bias)
            for start, end in [(max(one.start, vma.start), min(one.end, vma.end))]
            if start < end
        ]

    def _interpreter(self, program: StoredFile) -> Optional[StoredFile]:
        for segment in program.headers.segments:
            if segment.type == PT_INTERP:
                raw = program.read(segment.offset, min(segment.file_size, _MAX_PATH)).rstrip(b"\0")
                path = raw.decode("utf-8", "surrogateescape")
                with suppress(OSError, CannotTrace):
                    # The kernel does not report this file, so take the one that has its name now.
                    return self._files.add_open(self._open_path(path))
        return None

    def _open(self, key: FileKey) -> int:
        """Open a file that the BPF program reported.  Raises ``OSError``, also if it was replaced."""
        for name in names(key.path):
            with suppress(OSError):
                fd = self._open_path(name)
                if is_file(fd, key):
                    return fd
                os.close(fd)
        raise FileNotFoundError(key.path)

    def _open_path(self, path: str) -> int:
        if self.root is None:
            raise FileNotFoundError(path)
        return open_in_root(self.root, path)

    @property
    def _kept_ranges(self) -> int:
        return sum(len(layout.ranges) for layout in self._layouts)

    def refresh_for_unknown(self) -> bool:
        """As ``refresh``, for an address in no known range; does nothing directly after the last time."""
        begin = time.monotonic()
        if begin < self._next_reading:
            return False
        changed = self.refresh()
        end = time.monotonic()
        self._next_reading = end + _REST * (end - begin)
        return changed

    def at(self, moment: Optional[int]) -> Layout:
        """The code at ``moment`` (ns; None for the latest).

        It is the last reading before, completed by the next one after, because a library may have been loaded
        between a reading and the copy.
        """
        if not self._layouts:
            return Layout(())
        if moment is None:
            return self._layouts[-1]
        after = bisect_right(self._since, moment)
        if after == 0:
            return self._layouts[0]
        if after == len(self._layouts):
            return self._layouts[-1]
        return self._merge(self._layouts[after - 1], self._layouts[after])

    def _layout(self, vmas: Sequence[Vma]) -> Layout:
        return Layout(tuple(self._code(vma) for vma in vmas if "x" in vma.perms and vma.path != "[vsyscall]"))

    def _code(self, vma: Vma) -> CodeRange:
        if vma.path == VDSO:
            stored = self._files.add_vdso()
            bias = None if stored is None else load_bias(stored.headers, vma.start, 0, vma.size)
        elif vma.inode:
            stored = self._files.add(file_key(vma), lambda: open_mapped_file(self._pid, vma))
            if stored is None and (known := self._known(vma)):
                return known
            bias = None if stored is None else load_bias(stored.headers, vma.start, vma.offset, vma.size)
        else:
            return _made(vma)
        if stored is None or bias is None:
            return _without_file(vma)
        return CodeRange(vma.start, vma.end, vma.path, stored.id, bias, vma.offset)

    def _known(self, vma: Vma) -> Optional[CodeRange]:
        """The code of a mapping whose file can't be opened, as the process has just exited, but was before.

        The file may then have had another key: on overlayfs before Linux 6.8, maps has another device than
        the kernel's struct file that the BPF program reports.
        """
        known = self._layouts[-1].find(vma.start) if self._layouts else None
        if known is None or known.file is None or known.path != vma.path:
            return None
        if known.offset - known.start != vma.offset - vma.start:
            return None
        return known._replace(start=vma.start, end=vma.end, offset=vma.offset)


def _made(vma: Vma) -> CodeRange:
    return CodeRange(vma.start, vma.end, "", None, 0, 0)


def _joined(ranges: Sequence[CodeRange]) -> tuple[CodeRange, ...]:
    """With neighbours of code without a file as one: an instruction may lie in both."""
    joined: list[CodeRange] = []
    for one in ranges:
        if joined and one.is_made and joined[-1].is_made and joined[-1].end == one.start:
            joined[-1] = joined[-1]._replace(end=one.end)
        else:
            joined.append(one)
    return tuple(joined)


def _without_file(vma: Vma) -> CodeRange:
    """Return the code of a mapping whose file is no ELF file that is loaded there.

    In shared memory it is JIT code, which some compilers map twice: to be written, and to be executed (.NET:
    memfd "doublemapper").
    """
    if vma.path.startswith(MEMORY_FILES):
        return _made(vma)
    return CodeRange(vma.start, vma.end, vma.path, None, vma.start - vma.offset, vma.offset)


def _code_of(file: StoredFile, path: str, bias: int) -> list[CodeRange]:
    """The executable segments of a file that is loaded with this bias."""
    return [
        CodeRange(
            bias + load.address - load.address % SMALLEST_PAGE,
            bias + -(-(load.address + load.memory_size) // SMALLEST_PAGE) * SMALLEST_PAGE,
            path, file.id, bias, load.offset - load.address % SMALLEST_PAGE,
        )
        for load in file.headers.loads
        if load.flags & PF_X
    ]  # fmt: skip


def _disjoint(ranges: Sequence[CodeRange]) -> tuple[CodeRange, ...]:
    """Sort the ranges; of two that overlap, which sound files never do, keep the first."""
    kept: list[CodeRange] = []
    for one in sorted(ranges):
        if 0 <= one.start < one.end and not (kept and one.start < kept[-1].end):
            kept.append(one)
    return tuple(kept)


def load_bias(headers: ElfHeaders, start: int, offset: int, size: int) -> Optional[int]:
    """Load bias of the ELF file whose bytes from ``offset`` are mapped executable at ``start``.

    None if no executable segment is mapped there, for example if a file is mapped as data.  The segment, and
    not the file's lowest mapping, decides, so that the result is right for a file that is mapped twice.
    """
    for load in _executable_first(headers):
        first = load.offset - load.offset % SMALLEST_PAGE
        if first < offset + size and offset < load.offset + load.file_size:
            return start - offset - (load.address - load.offset)
    return None


def _executable_first(headers: ElfHeaders) -> list[Segment]:
    return sorted(headers.loads, key=lambda load: not load.flags & PF_X)
