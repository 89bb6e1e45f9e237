# SPDX-License-Identifier: Apache-2.0
"""Which pages of a process are in memory; reading any other page would bring it in.

This uses ``PAGEMAP_SCAN`` (Linux 6.7, ioctl on /proc/PID/pagemap; Documentation/admin-guide/mm/pagemap.rst)
in its read-only mode, or the file itself, which has 8 bytes for each page, even for pages that are not
mapped.
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

from ebpftrace.procfs.access import task_dir, through_live_task
from ebpftrace.search.areas import Areas
from ebpftrace.search.runs import Addresses, Runs, difference, intersection, merged, no_runs, union
from ebpftrace.units import PAGE

_PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg) (include/uapi/linux/fs.h)."""
_FILE, _PRESENT, _SWAPPED, _ZERO, _GUARD = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8
_REGIONS = 1 << 15
_FAR, _MAX_SPANS = 1 << 20, 256
"""Spans with a gap of ``_FAR`` bytes between them are scanned separately, since a call takes as long as
scanning a MiB; there are at most ``_MAX_SPANS``."""
MAX_RUNS = 1 << 21
"""Limit of separate pieces of present memory; a program has thousands."""
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_FILE, _ENTRY_GUARD = 63, 62, 61, 58
_ENTRIES = 1 << 16
_MAX_ENTRIES = 1 << 27
"""Limit of entries read from the file itself: 512 GiB of address space, some seconds."""


class Present(NamedTuple):
    """Pages that are in memory and can contain pointers."""

    pages: Runs
    swapped: Runs
    """Pages that can contain pointers and are in swap."""
    unknown: int
    """Bytes of address space that exceeded the limits and were not examined."""


class Presence:
    """Examines the pages of one process.  Opening raises ``ProcessGone`` or ``CannotTrace``."""

    def __init__(self, pid: int) -> None:
        def use(tid: int) -> int:
            return os.open(f"{task_dir(pid, tid)}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

        self._fd = through_live_task(pid, "page map", use)
        self._scans = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def read_now(self, areas: Areas, within: Runs) -> Present:
        """The pages of the areas, at addresses ``within``, that are in memory now."""
        spans = intersection(union(union(areas.private, areas.shared), areas.rings), within)
        if not spans.pieces:
            return Present(no_runs(), no_runs(), 0)
        examined = self._survey(spans)
        private = difference(examined.anonymous, examined.zero)
        pages = union(
            union(intersection(private, areas.private), intersection(examined.files, areas.shared)),
            intersection(union(examined.anonymous, examined.files), areas.rings),
        )
        swapped = intersection(examined.swapped, union(areas.private, areas.shared))
        return Present(intersection(pages, within), intersection(swapped, within), examined.unknown)

    def _survey(self, spans: Runs) -> _PageKinds:
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
                    return _PageKinds(no_runs(), no_runs(), no_runs(), no_runs(), spans.size)
                self._scans = False
        return _collected(self._read(spans))

    def _scan(self, spans: Runs) -> Iterator[_Part]:
        regions = np.zeros((_REGIONS, 3), np.uint64)
        arguments = (ctypes.c_uint64 * 12)()
        found = 0
        for start, end in _spans_to_scan(spans):
            at = start
            while at < end and found <= MAX_RUNS:
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
                yield _unexamined(end - at)

    def _read(self, spans: Runs) -> Iterator[_Part]:
        """Read the file itself; spans beyond the limits are left out and counted."""
        entries = found = 0
        for start, end in zip(spans.starts.tolist(), spans.ends.tolist()):
            while start < end:
                count = min(_ENTRIES, (end - start) // PAGE)
                entries += count
                if entries > _MAX_ENTRIES or found > MAX_RUNS:
                    yield _unexamined(end - start)
                    break
                try:
                    content = os.pread(self._fd, 8 * count, start // PAGE * 8)
                except OSError:
                    content = b""
                flags = np.frombuffer(content[: len(content) & ~7], np.uint64)
                if not len(flags):
                    yield _unexamined(end - start)
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


def _spans_to_scan(spans: Runs) -> Iterator[tuple[int, int]]:
    """Ranges [start, end) that contain all the spans, without most of the large gaps between them."""
    gaps = spans.starts[1:] - spans.ends[:-1]
    cuts = np.flatnonzero(gaps > np.uint64(_FAR))
    if len(cuts) > _MAX_SPANS:
        cuts = np.sort(cuts[np.argsort(gaps[cuts])[-_MAX_SPANS:]])
    firsts, lasts = np.append(0, cuts + 1), np.append(cuts, spans.pieces - 1)
    return zip(spans.starts[firsts].tolist(), spans.ends[lasts].tolist())


class _Part(NamedTuple):
    starts: Addresses
    ends: Addresses
    present: NDArray[np.bool_]
    file: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    unknown: int


class _PageKinds(NamedTuple):
    anonymous: Runs
    files: Runs
    zero: Runs
    swapped: Runs
    unknown: int


def _unexamined(size: int) -> _Part:
    nothing, none = np.empty(0, np.uint64), np.empty(0, np.bool_)
    return _Part(nothing, nothing, none, none, none, size)


def _has(kinds: Addresses, bit: int) -> NDArray[np.bool_]:
    wanted: NDArray[np.bool_] = kinds >> np.uint64(bit - _ENTRY_GUARD) & np.uint64(1) != 0
    return wanted


def _collected(parts: Iterable[_Part]) -> _PageKinds:
    every = list(parts)
    starts, ends, present, file, zero = (
        np.concatenate([part[field] for part in every]) for field in range(5)
    )
    masks = (present & ~file, present & file, zero, ~present)
    anonymous, files, zeros, swapped = (
        merged(starts[mask], ends[mask]) if mask.any() else no_runs() for mask in masks
    )
    return _PageKinds(anonymous, files, zeros, swapped, sum(part.unknown for part in every))
