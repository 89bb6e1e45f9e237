# SPDX-License-Identifier: Apache-2.0
"""What is in use although no pointer to it can be found: memory kept otherwise, and pointers in disguise."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import PurePosixPath

from ebpftrace.model import Books, Heap, Interval, Vma
from ebpftrace.search.kinds import MEMORY_FILES
from ebpftrace.vmas import HEAP, Vmas

_DISGUISES = (
    (r"libjvm\.so", "a Java virtual machine compresses pointers and colours them"),
    (
        r"(node|nodejs|deno|electron|chrome|chromium.*|msedge|brave|libnode|libv8.*|libcef|.*WebEngineCore.*)"
        r"(\.so.*)?",
        "V8 compresses pointers",
    ),
    (r"(luajit.*|libluajit.*)", "LuaJIT packs pointers into numbers"),
    (r"(libmozjs.*|libxul\.so|firefox.*)", "SpiderMonkey packs pointers into numbers"),
    (r"libtcmalloc.*", "tcmalloc notes page numbers instead of pointers"),
    (r"lib(asan|tsan|hwasan|msan|clang_rt)\b.*", "a sanitizer computes the addresses of its shadow memory"),
    (r"libart\.so", "the Android run-time compresses pointers"),
)
"""File names of run-times that store pointers to mappings in a form that the search can't recognise.

Not Go, CPython, Ruby, .NET, Erlang, OCaml and JavaScriptCore: theirs are plain, or tagged in the low bits.
Those of jemalloc and glibc are plain where they matter: only links between freed blocks are disguised.
"""
_PATTERNS = tuple((re.compile(pattern), why) for pattern, why in _DISGUISES)


def disguised_pointers(vmas: Vmas) -> str:
    """Why pointers to mappings may be stored in disguise in this process; empty where nothing says so."""
    names = {kind.path for kind in vmas.kinds if kind.inode and "x" in kind.perms}
    for name in sorted(PurePosixPath(path).name for path in names):
        for pattern, why in _PATTERNS:
            if pattern.fullmatch(name.removesuffix(" (deleted)")):
                return why
    return ""


class KeptWithoutPointer:
    """Says of mappings of one process whether they are in use even if nothing points to them."""

    def __init__(self, vmas: Vmas, books: Books, heaps: Sequence[Heap] = ()) -> None:
        """All of one moment."""
        self._vmas = vmas
        stacks = [thread for thread in books.threads if thread.stack is not None]
        live = [thread.stack for thread in stacks if not thread.exited and thread.stack is not None]
        exited = [thread.stack for thread in stacks if thread.exited and thread.stack is not None]
        self._known = [
            (_Ranges(live), "it is the stack of a live thread"),
            (_Ranges(exited), "it is the stack of a thread that nobody has joined"),
            (_Ranges(books.stack_cache), "it is in glibc's cache of stacks"),
            (_Ranges([Interval(heap.start, heap.end) for heap in heaps]), "it is a heap of malloc"),
        ]

    def why(self, pieces: Sequence[Interval]) -> str:
        """Why a mapping, in ascending pieces, is in use; empty where nothing says so.

        Whether it was placed in a reservation (MAP_FIXED) is for the caller to know.
        """
        for ranges, why in self._known:
            if any(ranges.overlap(piece) for piece in pieces):
                return why
        touchable = False
        for piece in pieces:
            first = bisect_right(self._vmas.ends, piece.start)
            last = bisect_left(self._vmas.starts, piece.end)
            for at in range(first, last):
                why = self._why_vma(at)
                if why:
                    return why
                touchable = touchable or not self._vmas.kinds[at].perms.startswith("---")
        return "" if touchable else "it is a guard or a reservation: nobody can touch it"

    def _why_vma(self, at: int) -> str:
        kind = self._vmas.kinds[at]
        if _is_file(kind):
            return "it is part of a mapped file"
        if kind.path.startswith("[") and not kind.path.startswith("[anon"):
            return "it is the heap of brk" if kind.path == HEAP else "the kernel made it"
        if at and not kind.inode and self._vmas.ends[at - 1] == self._vmas.starts[at]:
            before = self._vmas.kinds[at - 1]
            if _is_file(before) and before.perms == "rw-p" and not kind.path:
                return "it is the zeroed data of a loaded file"
        return ""


class _Ranges:
    """Ranges that may overlap."""

    def __init__(self, ranges: Sequence[Interval]) -> None:
        ordered = sorted(ranges)
        self._starts = [one.start for one in ordered]
        self._reach = list(accumulate((one.end for one in ordered), max))

    def overlap(self, piece: Interval) -> bool:
        """Whether one of them has an address in common with it."""
        before = bisect_left(self._starts, piece.end)
        return before > 0 and self._reach[before - 1] > piece.start


def _is_file(kind: Vma) -> bool:
    return bool(kind.inode) and not kind.path.startswith(MEMORY_FILES)
