# SPDX-License-Identifier: Apache-2.0
"""What code is where in a process, and was: the module list, kept over time.

A copy is unwound after it was made; meanwhile libraries come (dlopen) and go (dlclose), or the
process is gone.  Each reading of the process's maps is therefore kept with its time, and a copy is unwound
with the readings just before and just after it.  Between readings, or where the process was gone before the
first, what the kernel side told of executed files is entered at its time.
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

from ebpftrace.errors import CannotTrace
from ebpftrace.model import Vma
from ebpftrace.process.files import FileKey, file_key, is_file, names, open_mapped_file
from ebpftrace.process.maps import read_maps
from ebpftrace.stacks.elf import PF_X, PT_INTERP, ElfHeaders, Segment
from ebpftrace.stacks.files import VDSO, FileStore, StoredFile
from ebpftrace.stacks.rooted import open_in_root

MAX_LAYOUTS = 512
"""Readings kept per process; the oldest but the first goes when there are more."""
MAX_RANGES = 1 << 18
"""The same for their ranges in all: 50 MiB.  One reading may have as many as a process may have mappings."""
_PAGE = 4096
_REST = 10
"""After a reading of the maps for an unknown address, rest ten times as long as it took."""


_AT_BASE, _AT_ENTRY, _AT_SYSINFO_EHDR = 7, 9, 33  # include/uapi/linux/auxvec.h
_MOST_PATH = 4096
"""PATH_MAX (include/uapi/linux/limits.h)."""


class CodeRange(NamedTuple):
    """Executable memory, [start, end)."""

    start: int
    end: int
    path: str
    """As /proc/PID/maps prints it, empty for JIT code."""
    file: Optional[int]
    """Id in the FileStore; None without a usable file."""
    bias: int
    """Address in the process minus address in the file, as its program headers count."""
    offset: int
    """Place in the file of the byte at ``start``."""


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
        """The range that holds ``address``."""
        at = bisect_right(self._starts, address) - 1
        return self.ranges[at] if at >= 0 and address < self.ranges[at].end else None

    @property
    def modules(self) -> tuple[Module, ...]:
        """The loaded files, each once per place where it is loaded."""
        return tuple(dict.fromkeys(Module(r.file, r.bias) for r in self.ranges if r.file is not None))

    def over(self, other: Layout) -> Layout:
        """This layout, with the ranges of another where this one has nothing."""
        if self == other:
            return self
        free = [r for r in other.ranges if not self._overlaps(r)]
        return Layout(tuple(sorted((*self.ranges, *free)))) if free else self

    def _overlaps(self, new: CodeRange) -> bool:
        at = bisect_right(self._starts, new.start) - 1
        if at >= 0 and self.ranges[at].end > new.start:
            return True
        return at + 1 < len(self.ranges) and self.ranges[at + 1].start < new.end


class ModuleHistory:
    """The layouts of one process; its files are opened as soon as they are seen."""

    def __init__(self, pid: int, files: FileStore, root: Optional[int] = None) -> None:
        """``root``: its root directory, a descriptor; for files that the kernel side tells of."""
        self.root = root
        self._pid = pid
        self._files = files
        self._since: list[int] = []
        self._layouts: list[Layout] = []
        self._told: list[Optional[Layout]] = []
        """What the kernel side told of, over the layout before it; None: a layout that was read."""
        self._next_reading = 0.0
        self.version = 0
        """How often other code was found."""
        self._merge = lru_cache(maxsize=8)(Layout.over)

    def refresh(self, at: Optional[int] = None, vmas: Optional[Sequence[Vma]] = None) -> bool:
        """Read the maps, or take ``vmas`` that were read; True if the code differs from the last reading.

        ``at`` (CLOCK_MONOTONIC ns) is the moment from which this layout holds, such as the time of an
        mmap of a library or of an exec; now if not given.  A process that is gone changes nothing.
        """
        # Before the reading: what is mapped meanwhile, and not read, is of after it.
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
        """Take in that this was mapped at a time (CLOCK_MONOTONIC ns); ``path`` is as seen from ``root``."""
        self._enter(self._image(vma), at)
        self._forget()

    def executed(self, key: FileKey, auxv: Mapping[int, int], at: int) -> None:
        """Take in that the process began to execute a program, which replaced all code.

        ``auxv``: its auxiliary vector, which says where program and interpreter lie (getauxval(3)).
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
        """Put these in place of what was there, from a time on and until the next reading."""
        index = bisect_right(self._since, at)
        told = Layout(_disjoint(ranges))
        layout = told.over(self._layouts[index - 1]) if index else told
        if index and index == len(self._layouts) and layout == self._layouts[-1]:
            return
        self._insert(index, at, layout, told)
        # Two threads may be told of in the wrong order.
        for later in range(index + 1, len(self._layouts)):
            over = self._told[later]
            if over is None:
                break
            self._layouts[later] = over.over(self._layouts[later - 1])

    def _insert(self, index: int, since: int, layout: Layout, told: Optional[Layout] = None) -> None:
        self.version += 1
        self._since.insert(index, since)
        self._layouts.insert(index, layout)
        self._told.insert(index, told)

    def _forget(self) -> None:
        while len(self._layouts) > 2 and (len(self._layouts) > MAX_LAYOUTS or self._kept_ranges > MAX_RANGES):
            del self._since[1], self._layouts[1], self._told[1]

    def _image(self, vma: Vma) -> list[CodeRange]:
        """The code that a mapping brings: at first it may be of a whole file."""
        key = file_key(vma)
        stored = self._files.add(key, lambda: self._open(key))
        bias = None if stored is None else load_bias(stored.headers, vma.start, vma.offset, vma.size)
        if stored is None or bias is None:
            return [CodeRange(vma.start, vma.end, vma.path, None, vma.start - vma.offset, vma.offset)]
        return [
            one._replace(start=start, end=end, offset=vma.offset + start - vma.start)
            for one in _code_of(stored, vma.path, bias)
            for start, end in [(max(one.start, vma.start), min(one.end, vma.end))]
            if start < end
        ]

    def _interpreter(self, program: StoredFile) -> Optional[StoredFile]:
        for segment in program.headers.segments:
            if segment.type == PT_INTERP:
                raw = program.read(segment.offset, min(segment.file_size, _MOST_PATH)).rstrip(b"\0")
                path = raw.decode("utf-8", "surrogateescape")
                with suppress(OSError, CannotTrace):
                    # Nobody tells which file it was: the one that has its name now.
                    return self._files.add_open(self._open_path(path))
        return None

    def _open(self, key: FileKey) -> int:
        """Open a file that the kernel side told of.  Raises OSError, also where another has its name now."""
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
        """Like ``refresh``, for an address in no known range; does nothing if the last one was just now."""
        begin = time.monotonic()
        if begin < self._next_reading:
            return False
        changed = self.refresh()
        end = time.monotonic()
        self._next_reading = end + _REST * (end - begin)
        return changed

    def at(self, moment: Optional[int]) -> Layout:
        """The code at ``moment`` (ns): the last reading before it, filled up from the next one after.

        A library may have been loaded between a reading and the copy.  None: the latest.
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
            bias = None if stored is None else load_bias(stored.headers, vma.start, vma.offset, vma.size)
        else:
            return CodeRange(vma.start, vma.end, "", None, 0, 0)
        if stored is None or bias is None:
            return CodeRange(vma.start, vma.end, vma.path, None, vma.start - vma.offset, vma.offset)
        return CodeRange(vma.start, vma.end, vma.path, stored.id, bias, vma.offset)


def _code_of(file: StoredFile, path: str, bias: int) -> list[CodeRange]:
    """The executable segments of a file that is loaded with this bias."""
    return [
        CodeRange(
            bias + load.address - load.address % _PAGE,
            bias + -(-(load.address + load.memory_size) // _PAGE) * _PAGE,
            path, file.id, bias, load.offset - load.address % _PAGE,
        )
        for load in file.headers.loads
        if load.flags & PF_X
    ]  # fmt: skip


def _disjoint(ranges: Sequence[CodeRange]) -> tuple[CodeRange, ...]:
    """Ascending; of those that overlap, as no honest file's do, the first one."""
    kept: list[CodeRange] = []
    for one in sorted(ranges):
        if 0 <= one.start < one.end and not (kept and one.start < kept[-1].end):
            kept.append(one)
    return tuple(kept)


def load_bias(headers: ElfHeaders, start: int, offset: int, size: int) -> Optional[int]:
    """Load bias of the ELF file whose bytes from ``offset`` are mapped executable at ``start``.

    None where no executable segment is mapped there (a file mapped whole as data, for instance).
    Deciding by the segment, not by the file's lowest mapping, is right also for a file mapped twice.
    """
    for load in _executable_first(headers):
        first = load.offset - load.offset % _PAGE
        if first < offset + size and offset < load.offset + load.file_size:
            return start - offset - (load.address - load.offset)
    return None


def _executable_first(headers: ElfHeaders) -> list[Segment]:
    return sorted(headers.loads, key=lambda load: not load.flags & PF_X)
