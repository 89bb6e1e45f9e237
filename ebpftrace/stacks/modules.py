"""What code is where in a process, and was: the module list, kept over time.

A copy is unwound after it was made; meanwhile libraries come (dlopen) and go (dlclose), or the
process is gone.  Each reading of the process's maps is therefore kept with its time, and a copy is unwound
with the readings just before and just after it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.model import Vma
from ebpftrace.process.files import file_key, open_mapped_file
from ebpftrace.process.maps import read_maps
from ebpftrace.stacks.elf import PF_X, ElfHeaders, Segment
from ebpftrace.stacks.files import VDSO, FileStore

MAX_LAYOUTS = 512
"""Readings kept per process; the oldest but the first goes when there are more."""
MAX_RANGES = 1 << 18
"""The same for their ranges in all: 50 MiB.  One reading may have as many as a process may have mappings."""
_PAGE = 4096
_REST = 10
"""After a reading of the maps for an unknown address, rest ten times as long as it took."""


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

    def __init__(self, pid: int, files: FileStore) -> None:
        self._pid = pid
        self._files = files
        self._since: list[int] = []
        self._layouts: list[Layout] = []
        self._next_reading = 0.0
        self._merge = lru_cache(maxsize=8)(Layout.over)

    def refresh(self, at: Optional[int] = None) -> bool:
        """Read the maps; True if the code differs from the last reading.

        ``at`` (CLOCK_MONOTONIC ns) is the moment from which this layout holds, such as the time of an
        mmap of a library or of an exec; now if not given.  A process that is gone changes nothing.
        """
        try:
            vmas = read_maps(self._pid)
        except CannotTrace:
            return False
        layout = self._layout(vmas)
        if not layout.ranges or (self._layouts and layout == self._layouts[-1]):
            return False
        since = time.monotonic_ns() if at is None else at
        if self._since:
            since = max(since, self._since[-1])
        self._since.append(since)
        self._layouts.append(layout)
        while len(self._layouts) > 2 and (len(self._layouts) > MAX_LAYOUTS or self._kept_ranges > MAX_RANGES):
            del self._since[1], self._layouts[1]
        return True

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
