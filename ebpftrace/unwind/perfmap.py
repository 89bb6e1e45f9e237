# SPDX-License-Identifier: Apache-2.0
"""Names of JIT code from ``/tmp/perf-PID.map``, as V8, OpenJDK agents and CPython (-X perf) write it.

Format: kernel tools/perf/Documentation/jit-interface.txt, lines "START SIZE name" in hex.  The file
belongs to whoever may write the target's /tmp, so it is opened and read with care.
"""

from __future__ import annotations

import os
import posixpath
import re
import time
from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import NamedTuple, Optional

from ebpftrace.procfs.files import open_in_root
from ebpftrace.text import count, plural

MAX_BYTES = 64 << 20
MAX_LINES = 1 << 19
"""A line takes about 250 bytes when it is read, however short it is."""
MAX_NAME = 512
MAX_READINGS = 16
SECONDS_BETWEEN_READINGS = 2.0
_LINE = re.compile(rb"(?:0x)?([0-9a-fA-F]{1,16}) +(?:0x)?([0-9a-fA-F]{1,16}) +(.+)")
"""OpenJDK writes sizes of 16 digits (codeCache.cpp, CodeCache::write_perf_map)."""
_END = 1 << 64


_WRITERS = (
    ("libjvm.so", "jcmd {pid} Compiler.perfmap writes it (JDK 17)"),
    ("node", "node --perf-basic-prof writes it"),
    ("libnode.so", "node --perf-basic-prof writes it"),
    ("python3", "python -X perf writes it (Python 3.12)"),
    ("libpython3", "python -X perf writes it (Python 3.12)"),
)
"""Beginnings of the names of runtimes' files, and how each is made to write a map."""


class Region(NamedTuple):
    """A piece of JIT code: [start, end)."""

    start: int
    end: int
    name: str


class PerfMap:
    """The regions of one map file; of two that overlap, the one written last is valid."""

    def __init__(self, text: bytes) -> None:
        newest: dict[int, Region] = {}
        lines = text.split(b"\n", MAX_LINES)
        self.is_cut = any(lines[MAX_LINES:])
        """The file has more than ``MAX_LINES`` lines, and the others are left out."""
        self.lines = 0
        """Number of lines that are not empty."""
        self.unread = 0
        """Number of these lines that do not have the format."""
        for line in filter(None, lines[:MAX_LINES]):
            self.lines += 1
            found = _LINE.match(line)
            start, size = (int(found[1], 16), int(found[2], 16)) if found else (0, 0)
            if found is None or start + size > _END:
                self.unread += 1
                continue
            region = Region(start, start + size, found[3][:MAX_NAME].decode("utf-8", "surrogateescape"))
            # The last line for a start wins and counts as written last.
            newest.pop(start, None)
            newest[start] = region
        self._regions = sorted(newest.values())
        self._starts = [region.start for region in self._regions]
        self._written = {region.start: at for at, region in enumerate(newest.values())}

    def __len__(self) -> int:
        return len(self._regions)

    def find(self, address: int) -> Optional[Region]:
        """The region that contains ``address``; None if there is none."""
        found: Optional[Region] = None
        at = bisect_right(self._starts, address) - 1
        # Old code may still be listed around new; more overlaps than this are not a real map.
        for region in self._regions[max(at - 15, 0) : at + 1]:
            if address < region.end and (
                found is None or self._written[region.start] > self._written[found.start]
            ):
                found = region
        return found


class JitNames:
    """Names of one process's JIT code; reads its map when first asked, and again when it may have grown."""

    def __init__(self, root: int, pid: int, owners: Collection[int]) -> None:
        """Arguments as in ``read_perf_map``; ``root`` stays the caller's."""
        self._root, self.pid, self._owners = root, pid, owners
        self._map: Optional[PerfMap] = None
        self._readings = 0
        self._next_reading = 0.0
        self.note = ""
        """One line that says why the map was not, or not completely, read."""

    @property
    def is_missing(self) -> bool:
        """Whether there is no map at all, if it was needed so far."""
        return self._readings > 0 and self._map is None

    def find(self, address: int) -> Optional[Region]:
        """The JIT function at ``address``, None if unknown."""
        found = self._map.find(address) if self._map is not None else None
        if found is None and self._readings < MAX_READINGS and time.monotonic() >= self._next_reading:
            self._map, self.note = read_perf_map(self._root, self.pid, self._owners)
            self._readings += 1
            self._next_reading = time.monotonic() + SECONDS_BETWEEN_READINGS
            found = self._map.find(address) if self._map is not None else None
        return found


def read_perf_map(root: int, pid: int, owners: Collection[int]) -> tuple[Optional[PerfMap], str]:
    """The map of a process, and one line that says why there is none.

    ``root`` is a descriptor of its root directory, ``pid`` its PID in its own PID namespace, ``owners``
    the user ids that may own the file (the process's and root's).  A missing file is no reason to
    speak: the line is empty.
    """
    path = f"/tmp/perf-{pid}.map"
    try:
        fd = open_in_root(root, path)
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"perf map {path} not read: {error.strerror}"
    try:
        status = os.fstat(fd)
        if status.st_uid not in owners:
            return None, f"perf map {path} not read: owned by user {status.st_uid}"
        text = bytearray()
        while len(text) < MAX_BYTES:
            chunk = os.read(fd, min(1 << 20, MAX_BYTES - len(text)))
            if not chunk:
                break
            text += chunk
        names = PerfMap(bytes(text))
        is_cut = names.is_cut or len(text) == MAX_BYTES
        return names, _limits(names, path, is_cut)
    except OSError as error:
        return None, f"perf map {path} not read: {error.strerror}"
    finally:
        os.close(fd)


def how_to_get(pid: int, paths: Iterable[str]) -> str:
    """One line: there is no map of a process, and what would write one; ``paths`` of the code in it."""
    names = {posixpath.basename(path) for path in paths}
    ways = (way for start, way in _WRITERS if any(name.startswith(start) for name in names))
    way = next((way.format(pid=pid) for way in ways), "")
    return f"no names of JIT code: there is no perf map /tmp/perf-{pid}.map{'; ' + way if way else ''}"


def _limits(names: PerfMap, path: str, is_cut: bool) -> str:
    notes = []
    if is_cut:
        notes.append(f"only the first {MAX_BYTES >> 20} MiB or {MAX_LINES:,} lines of perf map {path} read")
    if names.unread:
        unread = f"{count(names.unread)} of {plural(names.lines, 'line')}"
        notes.append(f"{unread} of perf map {path} not read: not START SIZE NAME in hexadecimal numbers")
    return "; ".join(notes)
