# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process: /proc/PID/maps and smaps (proc(5), kernel fs/proc/task_mmu.c).

A reading is not of one moment: the kernel unlocks the address space after each page of text.  It guarantees
that addresses ascend and that a mapping which exists all the time is listed (kernel
Documentation/filesystems/proc.rst); a mapping that changes meanwhile may be listed as it was or as it is.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Callable, Optional, TypeVar

from ebpftrace.model import Vma
from ebpftrace.procfs.access import read_chunks, require_address_space, task_dir, through_live_task
from ebpftrace.vmas import HEAP, Vmas

# The path is last and greedy: it may contain anything but a newline, which the kernel writes as \012.
_WHAT = re.compile(rb" (\S{4}) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+) (\d{1,20}) *(.*)$", re.MULTILINE)
_MAPS_RECORD_END = b"\n"
_SMAPS_RECORD_END = b"\nVmFlags:"
_MAX_RANGE = 2 * 16 + 1
"""Characters of two addresses with a dash between them."""
_USUAL_DIGITS = 12
"""Digits of the addresses of libraries, stacks and what mmap returns, on x86-64 and aarch64."""
_USUAL_RANGE = 2 * _USUAL_DIGITS + 1
_NUMBER = 8
_FILL = b"0" * (2 * _NUMBER - _USUAL_DIGITS)
_MAX_BETWEEN_HEAPS = 1000
"""Files that may be mapped between two parts of the heap."""
_LONG = 1 << 15
"""Bytes; a first chunk of this size may be that of a long text."""
_CHUNKS_AHEAD = 4
"""Chunks read ahead.  With only one, the reader would wait for the GIL, which the parser has, before each."""
_MAX_CACHED_KINDS = 1024
"""Parsed records that are cached: apart from the addresses, most records have the same text as another."""
_NO_ACCESS = "---"
_KIB = 1024
_MAX_DIGITS = 20

Found = TypeVar("Found")
_Columns = tuple[Sequence[int], Sequence[int], Sequence[Vma]]
"""Starts, ends, and all else."""


def read_maps(pid: int) -> Vmas:
    """All mappings of a process, ascending, disjoint.

    ``path`` is as the kernel prints it: a newline in it is ``\\012``, and a removed file ends in
    `` (deleted)``; a file name may also contain exactly this text.  Raises ``ProcessGone`` or
    ``CannotTrace``.
    """
    return _read(pid, "maps", parse_maps)


def count_areas(pid: int) -> int:
    """The number of mappings of a process.  Raises ``ProcessGone`` or ``CannotTrace``."""
    return _read(pid, "maps", lambda chunks: sum(chunk.count(b"\n") for chunk in chunks))


def read_heap_end(pid: int) -> int:
    """The program break (brk(2)), 0 if there is no heap; reads the maps only up to there.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    return _read(pid, "maps", heap_end)


def read_smaps(pid: int) -> Vmas:
    """As ``read_maps``, with the bytes that are resident, swapped and, separately, in huge TLB pages.

    The kernel walks the page tables for it, under a lock that the target's page faults and mmap calls take,
    so use it rarely: it takes about 0.8 s for 130,000 mappings.
    """
    return _read(pid, "smaps", lambda chunks: parse_smaps(_ahead(chunks)))


def parse_maps(chunks: Iterable[bytes]) -> Vmas:
    """Mappings from the text of a ``maps`` file, in chunks cut anywhere."""
    return _parse(chunks, _MAPS_RECORD_END)


def heap_end(chunks: Iterable[bytes]) -> int:
    """End of the heap from the text of a ``maps`` file, in chunks cut anywhere; 0 if there is none.

    The kernel names all memory between the first and the current break ``[heap]``, except mapped files.
    """
    end = others = 0
    name = HEAP.encode()
    for lines in _records(chunks, _MAPS_RECORD_END):
        heap = [line for line in lines if line.endswith(name)]
        areas = parse_maps([_MAPS_RECORD_END.join(heap)])
        ends = [area_end for area_end, kind in zip(areas.ends, areas.kinds) if kind.path == HEAP]
        others = 0 if ends else others + len(lines)
        if end and others > _MAX_BETWEEN_HEAPS:
            break
        end = max(ends, default=end)
    return end


def parse_smaps(chunks: Iterable[bytes]) -> Vmas:
    """Mappings from the text of a ``smaps`` file, in chunks cut anywhere."""
    return _parse(chunks, _SMAPS_RECORD_END)


def _parse(chunks: Iterable[bytes], record_end: bytes) -> Vmas:
    # A leak may have made 100,000 records, of 700 bytes each in smaps: no regular expressions here.
    vmas = Vmas()
    kind_of = lru_cache(_MAX_CACHED_KINDS)(_kind)
    for records in _records(chunks, record_end):
        vmas.extend(*(_parse_at_once(records, kind_of) or _parse_each(records, kind_of)))
    return vmas


def _parse_each(records: Sequence[bytes], kind_of: Callable[[bytes], Optional[Vma]]) -> _Columns:
    """Parse records one by one; those that are not of a mapping are left out."""
    starts, ends, kinds = [], [], []
    for record in records:
        line = record.find(b"\n") + 1  # behind the rest of the record before it, in smaps
        gap = record.find(b" ", line + 1)
        kind = kind_of(record[gap:])
        if kind is None or gap - line > _MAX_RANGE:
            continue
        try:
            start, end = record[line:gap].split(b"-")
            starts_at, ends_at = int(start, 16), int(end, 16)
        except ValueError:
            continue
        starts.append(starts_at)
        ends.append(ends_at)
        kinds.append(kind)
    return starts, ends, kinds


def _parse_at_once(records: Sequence[bytes], kind_of: Callable[[bytes], Optional[Vma]]) -> Optional[_Columns]:
    """Parse records all of whose addresses have ``_USUAL_DIGITS``, in half the time; else return None."""
    lines = [record.find(b"\n") + 1 for record in records]
    ranges = b"-".join([record[line : line + _USUAL_RANGE] for record, line in zip(records, lines)])
    if ranges[_USUAL_DIGITS :: _USUAL_RANGE + 1] != b"-" * len(records):
        return None
    kinds = [kind_of(record[line + _USUAL_RANGE :]) for record, line in zip(records, lines)]
    try:
        numbers = bytes.fromhex((_FILL + ranges.replace(b"-", _FILL)).decode("ascii"))
    except ValueError:
        return None
    if len(numbers) != 2 * _NUMBER * len(records):  # blanks are skipped
        return None
    known = [kind for kind in kinds if kind is not None]
    if len(known) != len(kinds):
        return None
    addresses = array("Q", numbers)
    if sys.byteorder == "little":
        addresses.byteswap()
    return addresses[::2], addresses[1::2], known


def _read(pid: int, name: str, parse: Callable[[Iterator[bytes]], Found]) -> Found:
    def use(tid: int) -> Found:
        found = parse(read_chunks(f"{task_dir(pid, tid)}/{name}"))
        # If the task exits meanwhile, the text ends without an error.
        require_address_space(pid, tid)
        return found

    return through_live_task(pid, "memory map", use)


def _ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks, while a thread reads the next ones; reading and parsing take about equally long."""
    first = next(chunks, b"")
    yield first
    if len(first) < _LONG:
        yield from chunks
        return
    from concurrent.futures import ThreadPoolExecutor  # importing it takes longer than parsing a short text

    with ThreadPoolExecutor(1) as reader:
        following = deque(reader.submit(next, chunks, b"") for _ in range(_CHUNKS_AHEAD))
        while chunk := following.popleft().result():
            following.append(reader.submit(next, chunks, b""))
            yield chunk


def _records(chunks: Iterable[bytes], record_end: bytes) -> Iterator[list[bytes]]:
    """Split the text into records, in lists; the last record ends where the text does.

    A line break precedes the first one, as the others in smaps begin with the rest of a line.
    """
    rest = b"\n"
    for chunk in chunks:
        *records, rest = (rest + chunk).split(record_end)
        yield records
    yield [rest]


def _kind(text: bytes) -> Optional[Vma]:
    """Parse a record without its addresses; None if it is not that of a mapping."""
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
    """Bytes of a line such as ``Rss:     12 kB``; None if there is no such line."""
    at = text.find(label)
    if at < 0:
        return None
    value = at + len(label)
    digits = text[value : text.find(b"k", value)].strip()
    return int(digits) * _KIB if len(digits) <= _MAX_DIGITS and digits.isdigit() else None
