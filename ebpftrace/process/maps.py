# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process: /proc/PID/maps and smaps (proc(5), kernel fs/proc/task_mmu.c).

A reading is not of one moment: the kernel lets go of the address space after each page of text.
It promises that addresses ascend and that what is mapped all the time is listed (kernel
Documentation/filesystems/proc.rst); a mapping that changes meanwhile may be listed in either shape.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Callable, Optional, TypeVar

from ebpftrace.model import Vma
from ebpftrace.process.procfs import read_chunks, require_address_space, task_dir, through_live_task
from ebpftrace.vmas import HEAP, Vmas

# In smaps, lines of figures begin with a capital letter and lines of mappings never do.
_RANGE = re.compile(rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16})(?= )", re.MULTILINE)
# Path last and greedy: it may hold anything but a newline, which the kernel writes as \012.
_WHAT = re.compile(rb" (\S{4}) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+) (\d{1,20}) *(.*)$", re.MULTILINE)
_MAPS_RECORD_END = b"\n"
_SMAPS_RECORD_END = b"\nVmFlags:"
_BLOCK = 1 << 16
"""Bytes of text that are parsed at once."""
_CHUNKS_AHEAD = 4
"""With one alone the reader would wait for the interpreter's lock, which the parser keeps, before each."""
_KINDS_KEPT = 1024
"""But for the addresses, the text of most records is that of another one, letter by letter."""
_NO_ACCESS = "---"
_KIB = 1024
_MAX_DIGITS = 20

Found = TypeVar("Found")


def read_maps(pid: int) -> Vmas:
    """All mappings of a process, ascending, disjoint.

    ``path`` is as the kernel prints it: a newline in it is ``\\012``, a removed file ends in
    `` (deleted)``; neither can be told from a name that really reads so.
    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    return _read(pid, "maps", parse_maps)


def count_areas(pid: int) -> int:
    """How many mappings a process has.  Raises ``ProcessGone`` or ``CannotTrace``."""
    return _read(pid, "maps", lambda chunks: sum(chunk.count(b"\n") for chunk in chunks))


def read_heap_end(pid: int) -> int:
    """Where the break stands (brk(2)), 0 where there is no heap; reads no further than up to there.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    return _read(pid, "maps", heap_end)


def read_smaps(pid: int) -> Vmas:
    """Like ``read_maps``, with resident and swapped bytes, and apart from those huge TLB pages.

    Costs the kernel a walk of the page tables, under the lock that the target's page faults and mmap
    calls take: for seldom use.  About 0.8 s for 130,000 mappings.
    """
    return _read(pid, "smaps", lambda chunks: parse_smaps(_ahead(chunks)))


def parse_maps(chunks: Iterable[bytes]) -> Vmas:
    """Mappings from the text of a ``maps`` file, in chunks cut anywhere."""
    return _parse(chunks, _MAPS_RECORD_END)


def heap_end(chunks: Iterable[bytes]) -> int:
    """End of the heap from the text of a ``maps`` file, in chunks cut anywhere; 0 where it has none.

    The kernel calls all heap that lies between the first and the last break, but for mapped files.
    """
    end = 0
    name = HEAP.encode()
    for block in _blocks(chunks, _MAPS_RECORD_END):
        heap = [line for line in block.split(_MAPS_RECORD_END) if line.endswith(name)]
        areas = parse_maps([_MAPS_RECORD_END.join(heap)])
        ends = [area_end for area_end, kind in zip(areas.ends, areas.kinds) if kind.path == HEAP]
        if end and not ends:
            break
        end = max(ends, default=end)
    return end


def parse_smaps(chunks: Iterable[bytes]) -> Vmas:
    """Mappings from the text of a ``smaps`` file, in chunks cut anywhere."""
    return _parse(chunks, _SMAPS_RECORD_END)


def _parse(chunks: Iterable[bytes], record_end: bytes) -> Vmas:
    vmas = Vmas()
    kind_of = lru_cache(_KINDS_KEPT)(_kind)
    for block in _blocks(chunks, record_end):
        for record in block.split(record_end):
            found = _RANGE.search(record)
            kind = kind_of(record[found.end() :]) if found else None
            if found and kind:
                vmas.add(int(found[1], 16), int(found[2], 16), kind)
    return vmas


def _read(pid: int, name: str, parse: Callable[[Iterator[bytes]], Found]) -> Found:
    def use(tid: int) -> Found:
        found = parse(read_chunks(f"{task_dir(pid, tid)}/{name}"))
        # The text of a task that exits meanwhile just ends, without an error.
        require_address_space(pid, tid)
        return found

    return through_live_task(pid, "memory map", use)


def _ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks; the kernel makes the next one while one is parsed, which takes about as long."""
    first = next(chunks, b"")
    yield first
    if len(first) < _BLOCK:
        yield from chunks
        return
    from concurrent.futures import ThreadPoolExecutor  # takes longer to import than a short text to parse

    with ThreadPoolExecutor(1) as reader:
        following = deque(reader.submit(next, chunks, b"") for _ in range(_CHUNKS_AHEAD))
        while chunk := following.popleft().result():
            following.append(reader.submit(next, chunks, b""))
            yield chunk


def _blocks(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """Join chunks, many since each is small, so that the text ends where a record ends; the last as it is."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        cut = pending.rfind(boundary) if len(pending) >= _BLOCK else -1
        if cut >= 0:
            yield bytes(pending[:cut])
            del pending[:cut]
    yield bytes(pending)


def _kind(text: bytes) -> Optional[Vma]:
    """The mapping of a record, by what stands behind its addresses; None where no mapping is told of."""
    what = _WHAT.match(text)
    if what is None:
        return None
    perms, offset, device, inode, path = what.groups()
    access = perms.decode("ascii", "surrogateescape")
    figures = text[what.end() :]
    return Vma(
        start=0,
        end=0,
        perms=access,
        offset=int(offset, 16),
        device=device.decode("ascii"),
        inode=int(inode),
        path=path.decode("utf-8", "surrogateescape"),
        rss=_figure(figures, b"\nRss:"),
        swap=_figure(figures, b"\nSwap:"),
        guard=access.startswith(_NO_ACCESS),
        page=_figure(figures, b"\nKernelPageSize:") or 0,
        huge=(_figure(figures, b"\nShared_Hugetlb:") or 0) + (_figure(figures, b"\nPrivate_Hugetlb:") or 0),
    )


def _figure(text: bytes, label: bytes) -> Optional[int]:
    """Bytes of a line such as ``Rss:     12 kB``; None where there is no such line."""
    at = text.find(label)
    if at < 0:
        return None
    value = at + len(label)
    digits = text[value : text.find(b"k", value)].strip()
    return int(digits) * _KIB if len(digits) <= _MAX_DIGITS and digits.isdigit() else None
