"""The mappings of a process: /proc/PID/maps and smaps (proc(5), kernel fs/proc/task_mmu.c).

A reading is not of one moment: the kernel lets go of the address space after each page of text.
It promises that addresses ascend and that what is mapped all the time is listed (kernel
Documentation/filesystems/proc.rst); a mapping that changes meanwhile may be listed in either shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Callable, Optional

from ebpftrace.model import Vma
from ebpftrace.process.procfs import read_chunks, require_address_space, task_dir, through_live_task

# Path last and greedy: it may hold anything but a newline, which the kernel writes as \012.  In smaps, lines
# of figures begin with a capital letter and lines of mappings never do.
_MAPS_LINE = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) (\S{4}) ([0-9a-f]{1,16}) ([0-9a-f]+:[0-9a-f]+) (\d{1,20}) *(.*)$",
    re.MULTILINE,
)
_SMAPS_RECORD_END = b"\nVmFlags:"
_SMAPS_FIGURES = b"\nRss:"
"""From here on the text of most records is that of another one, letter by letter."""
_FIGURES_KEPT = 1024
_NO_ACCESS = "---"
_KIB = 1024
_MAX_DIGITS = 20


def read_maps(pid: int) -> list[Vma]:
    """All mappings of a process, ascending, disjoint.

    ``path`` is as the kernel prints it: a newline in it is ``\\012``, a removed file ends in
    `` (deleted)``; neither can be told from a name that really reads so.
    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    return _read(pid, "maps", parse_maps)


def read_smaps(pid: int) -> list[Vma]:
    """Like ``read_maps``, with resident and swapped bytes, and apart from those huge TLB pages.

    Costs the kernel a walk of the page tables, under the lock that the target's page faults and mmap
    calls take: for seldom use.  About 1.2 s for 130,000 mappings.
    """
    return _read(pid, "smaps", parse_smaps)


def parse_maps(chunks: Iterable[bytes]) -> list[Vma]:
    """Mappings from the text of a ``maps`` file, in chunks cut anywhere."""
    decode = _Decoder()
    vmas = []
    for block in _blocks(chunks, b"\n"):
        vmas += [decode.vma(fields, None, None) for fields in _MAPS_LINE.findall(block)]
    return disjoint(vmas)


def parse_smaps(chunks: Iterable[bytes]) -> list[Vma]:
    """Mappings from the text of a ``smaps`` file, in chunks cut anywhere."""
    decode = _Decoder()
    figures = lru_cache(_FIGURES_KEPT)(_figures)
    vmas = []
    for block in _blocks(chunks, _SMAPS_RECORD_END):
        for record in block.split(_SMAPS_RECORD_END):
            header = _MAPS_LINE.search(record)
            if header:
                begin = record.find(_SMAPS_FIGURES, header.end())
                vmas.append(decode.vma(header.groups(), *figures(record[begin:] if begin >= 0 else b"")))
    return disjoint(vmas)


def disjoint(vmas: list[Vma]) -> list[Vma]:
    """The same mappings ascending, and cut where one begins before the last has ended.

    A mapping that merges with its lower neighbour while the list is read is listed whole, although
    part of it was before.
    """
    last_end = 0
    result = []
    for vma in sorted(vmas, key=attrgetter("start")):
        if vma.end > max(vma.start, last_end):
            result.append(vma if vma.start >= last_end else _without_head(vma, last_end))
            last_end = vma.end
    return result


def _without_head(vma: Vma, start: int) -> Vma:
    offset = vma.offset + (start - vma.start) if vma.inode else vma.offset
    return vma._replace(start=start, offset=offset)


def _read(pid: int, name: str, parse: Callable[[Iterable[bytes]], list[Vma]]) -> list[Vma]:
    def use(tid: int) -> list[Vma]:
        vmas = parse(read_chunks(f"{task_dir(pid, tid)}/{name}"))
        # The text of a task that exits meanwhile just ends, without an error.
        require_address_space(pid, tid)
        return vmas

    return through_live_task(pid, "memory map", use)


def _blocks(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """Join chunks so that each ends where a record ends; a last one without its boundary comes as it is."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        cut = pending.rfind(boundary)
        if cut >= 0:
            yield bytes(pending[:cut])
            del pending[:cut]
    yield bytes(pending)


def _figures(text: bytes) -> tuple[Optional[int], Optional[int], int]:
    """Resident and swapped bytes, and those in huge TLB pages, of the text of one record."""
    huge = (_figure(text, b"\nShared_Hugetlb:") or 0) + (_figure(text, b"\nPrivate_Hugetlb:") or 0)
    return _figure(text, b"\nRss:"), _figure(text, b"\nSwap:"), huge


def _figure(text: bytes, label: bytes) -> Optional[int]:
    """Bytes of a line such as ``Rss:     12 kB``; None where there is no such line."""
    at = text.find(label)
    if at < 0:
        return None
    value = at + len(label)
    digits = text[value : text.find(b"k", value)].strip()
    return int(digits) * _KIB if len(digits) <= _MAX_DIGITS and digits.isdigit() else None


class _Decoder:
    """Makes ``Vma`` of matched text; permissions and devices repeat, so they are decoded once each."""

    def __init__(self) -> None:
        self._texts: dict[bytes, str] = {}

    def _text(self, raw: bytes) -> str:
        text = self._texts.get(raw)
        if text is None:
            text = self._texts[raw] = raw.decode("ascii", "surrogateescape")
        return text

    def vma(self, fields: Sequence[bytes], rss: Optional[int], swap: Optional[int], huge: int = 0) -> Vma:
        """The mapping of one match of ``_MAPS_LINE``."""
        start, end, perms, offset, device, inode, path = fields
        access = self._text(perms)
        return Vma(
            int(start, 16),
            int(end, 16),
            access,
            int(offset, 16),
            self._text(device),
            int(inode),
            path.decode("utf-8", "surrogateescape") if path else "",
            rss,
            swap,
            access.startswith(_NO_ACCESS),
            huge,
        )
