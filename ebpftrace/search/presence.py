# SPDX-License-Identifier: Apache-2.0
"""Which pages of a process are in memory: reading any other would bring it in.

``PAGEMAP_SCAN`` (Linux 6.7, ioctl on /proc/PID/pagemap; Documentation/admin-guide/mm/pagemap.rst), in a mode
that only looks, or the file itself, which has 8 bytes for each page, also where nothing is mapped.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebpftrace.process.procfs import task_dir, through_live_task
from ebpftrace.search.areas import Areas
from ebpftrace.search.runs import Addresses, Runs, difference, intersection, merged, no_runs, union

PAGE = os.sysconf("SC_PAGE_SIZE")

_PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg) (include/uapi/linux/fs.h)."""
_FILE, _PRESENT, _SWAPPED, _ZERO, _GUARD = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8
_REGIONS = 1 << 15
_FAR, _MOST_STRETCHES = 1 << 20, 256
"""Spans so far apart are looked at one by one: a call takes as long as to look at a MiB.  At most so many."""
MOST_RUNS = 1 << 21
"""Pieces of present memory that are told apart; a program has thousands."""
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_FILE, _ENTRY_GUARD = 63, 62, 61, 58
_ENTRIES = 1 << 16
_MOST_ENTRIES = 1 << 27
"""Of the file itself: 512 GiB of address space, some seconds."""


class Present(NamedTuple):
    """Pages that are in memory and can hold pointers."""

    pages: Runs
    swapped: Runs
    """Pages that can hold pointers and are in swap."""
    unknown: int
    """Bytes of address space that were too many to be looked at."""


class Presence:
    """Looks at the pages of one process.  Raises ``ProcessGone`` or ``CannotTrace`` when it is opened."""

    def __init__(self, pid: int) -> None:
        def use(tid: int) -> int:
            return os.open(f"{task_dir(pid, tid)}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

        self._fd = through_live_task(pid, "page map", use)
        self._scans = True

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def look(self, areas: Areas, within: Runs) -> Present:
        """What of the areas is in memory now, of the addresses ``within``."""
        spans = intersection(union(union(areas.private, areas.shared), areas.rings), within)
        if not spans.pieces:
            return Present(no_runs(), no_runs(), 0)
        looked = self._look(spans)
        private = difference(looked.anonymous, looked.zero)
        pages = union(
            union(intersection(private, areas.private), intersection(looked.files, areas.shared)),
            intersection(union(looked.anonymous, looked.files), areas.rings),
        )
        swapped = intersection(looked.swapped, union(areas.private, areas.shared))
        return Present(intersection(pages, within), intersection(swapped, within), looked.unknown)

    def _look(self, spans: Runs) -> _Looked:
        if self._scans:
            try:
                return _collected(self._scan(spans))
            except OSError as error:
                if error.errno not in (
                    errno.ENOTTY,
                    errno.EINVAL,
                    errno.EPERM,
                    errno.ENOSYS,
                    errno.EOPNOTSUPP,
                ):
                    return _Looked(no_runs(), no_runs(), no_runs(), no_runs(), spans.size)
                self._scans = False
        return _collected(self._read(spans))

    def _scan(self, spans: Runs) -> Iterator[_Part]:
        regions = np.zeros((_REGIONS, 3), np.uint64)
        arguments = (ctypes.c_uint64 * 12)()
        found = 0
        for start, end in _stretches(spans):
            at = start
            while at < end and found <= MOST_RUNS:
                arguments[:] = [
                    ctypes.sizeof(arguments), 0, at, end, 0, regions.ctypes.data, _REGIONS, 0,
                    0, 0, _PRESENT | _SWAPPED, _FILE | _PRESENT | _SWAPPED | _ZERO,
                ]  # fmt: skip
                count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, arguments)
                kinds = regions[:count, 2]
                found += count
                yield _Part(
                    regions[:count, 0].copy(),
                    regions[:count, 1].copy(),
                    kinds & np.uint64(_PRESENT) != 0,
                    kinds & np.uint64(_FILE) != 0,
                    kinds & np.uint64(_ZERO) != 0,
                    0,
                )
                at = int(arguments[4])
            if at < end:
                yield _rest(end - at)

    def _read(self, spans: Runs) -> Iterator[_Part]:
        """From the file itself; spans of which there is too much are left out and counted."""
        entries = found = 0
        for start, end in zip(spans.starts.tolist(), spans.ends.tolist()):
            while start < end:
                count = min(_ENTRIES, (end - start) // PAGE)
                entries += count
                if entries > _MOST_ENTRIES or found > MOST_RUNS:
                    yield _rest(end - start)
                    break
                try:
                    content = os.pread(self._fd, 8 * count, start // PAGE * 8)
                except OSError:
                    content = b""
                flags = np.frombuffer(content[: len(content) & ~7], np.uint64)
                if not len(flags):
                    yield _rest(end - start)
                    break
                kinds = flags >> np.uint64(_ENTRY_GUARD)
                edges = np.flatnonzero(np.diff(kinds, prepend=~kinds[0]))
                bounds = np.append(edges, len(kinds)).astype(np.uint64) * np.uint64(PAGE) + np.uint64(start)
                kinds = kinds[edges]
                kept = _has(kinds, _ENTRY_PRESENT) | (
                    _has(kinds, _ENTRY_SWAPPED) & ~_has(kinds, _ENTRY_GUARD)
                )
                found += int(kept.sum())
                yield _Part(
                    bounds[:-1][kept],
                    bounds[1:][kept],
                    _has(kinds, _ENTRY_PRESENT)[kept],
                    _has(kinds, _ENTRY_FILE)[kept],
                    np.zeros(int(kept.sum()), np.bool_),
                    0,
                )
                start += len(flags) * PAGE


def _stretches(spans: Runs) -> Iterator[tuple[int, int]]:
    """[start, end) that hold all the spans, and not much of what lies far from any."""
    gaps = spans.starts[1:] - spans.ends[:-1]
    cuts = np.flatnonzero(gaps > np.uint64(_FAR))
    if len(cuts) > _MOST_STRETCHES:
        cuts = np.sort(cuts[np.argsort(gaps[cuts])[-_MOST_STRETCHES:]])
    firsts, lasts = np.append(0, cuts + 1), np.append(cuts, spans.pieces - 1)
    return zip(spans.starts[firsts].tolist(), spans.ends[lasts].tolist())


class _Part(NamedTuple):
    starts: Addresses
    ends: Addresses
    present: NDArray[np.bool_]
    file: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    unknown: int


class _Looked(NamedTuple):
    anonymous: Runs
    files: Runs
    zero: Runs
    swapped: Runs
    unknown: int


def _rest(size: int) -> _Part:
    nothing, none = np.empty(0, np.uint64), np.empty(0, np.bool_)
    return _Part(nothing, nothing, none, none, none, size)


def _has(kinds: Addresses, bit: int) -> NDArray[np.bool_]:
    wanted: NDArray[np.bool_] = kinds >> np.uint64(bit - _ENTRY_GUARD) & np.uint64(1) != 0
    return wanted


def _collected(parts: Iterable[_Part]) -> _Looked:
    every = list(parts)
    starts, ends, present, file, zero = (
        np.concatenate([part[field] for part in every]) for field in range(5)
    )
    masks = (present & ~file, present & file, zero, ~present)
    anonymous, files, zeros, swapped = (
        merged(starts[mask], ends[mask]) if mask.any() else no_runs() for mask in masks
    )
    return _Looked(anonymous, files, zeros, swapped, sum(part.unknown for part in every))
