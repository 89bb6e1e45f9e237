# SPDX-License-Identifier: Apache-2.0
"""A finding's fingerprint: the same for the same leak on another machine, after a rebuild and in another run.

It is a hash of the verdict, the start routine of the threads, and the user's functions on the call stack.
Addresses, offsets, lines, directories, versions of libraries and suffixes that compilers append to names are
left out, since they change while the leak stays.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Optional

from ebpftrace.model import Finding, Frame
from ebpftrace.wrappers import is_of_libc, is_wrapper, past_thread_maker, plain, qualified, started

FORM = 1
"""Version of the hashed text; increasing it changes all fingerprints."""

_DIGITS = 16
_MAX_FRAMES = 32
"""Limit of the user's frames that are hashed, innermost first."""
_DELETED = " (deleted)"
_VERSION_OF_LIBRARY = re.compile(r"(?:[-.]?(?:cpython-[\w-]+|abi3|\d[\d.]*))?\.so(?:\.\d+)*$")
_PROCESS_OF_PERF_MAP = re.compile(r"^perf-\d+\.map$")
_SUFFIX_OF_COMPILER = re.compile(
    r"(?:\.(?:constprop|isra|part|lto_priv|llvm|clone)\.\d+|\.cold(?:\.\d+)?|\.localalias|@{1,2}[\w.]+"
    r"|::h[0-9a-f]{16})+$"
)
_ENTRIES = frozenset({"start", "start_thread", "clone", "clone3", "libc_start_main"})
"""Functions of the C library, linked dynamically or statically, in which every thread begins."""


def fingerprint(finding: Finding) -> str:
    """16 hexadecimal digits that identify the leak."""
    routine = finding.start_routine
    called = started(finding.stack.frames) if finding.verdict.of_stacks else None
    parts = [
        str(FORM),
        finding.verdict.value,
        _place(routine) if routine is not None else "",
        _without_suffix(called or ""),
        *_users_places(finding.stack.frames),
    ]
    data = "\0".join(parts).encode("utf-8", "backslashreplace")
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _users_places(frames: Sequence[Frame]) -> list[str]:
    """The user's frames, innermost first; if there are none, those of libraries other than the C library."""
    beyond = _without_entry(list(past_thread_maker(frames)))
    own = [frame for frame in beyond if not is_wrapper(frame)]
    shown = own or [frame for frame in beyond if not is_of_libc(frame)]
    return list(_once(map(_place, shown)))[:_MAX_FRAMES]


def _without_entry(frames: list[Frame]) -> list[Frame]:
    """Drop the outermost frames of the C library, since some of its builds lack the tables to unwind them."""
    while frames and plain(frames[-1]) in _ENTRIES:
        frames.pop()
    return frames


def _once(places: Iterator[str]) -> Iterator[str]:
    """Drop repetitions: the depth of a recursion, and the number of nameless frames in one file, vary."""
    last: Optional[str] = None
    for place in places:
        if place != last:
            yield place
        last = place


def _place(frame: Frame) -> str:
    """The function and the file with its code; for code without such a file (Python), its source."""
    function = _without_suffix(qualified(frame.function)) if frame.function else "?"
    return f"{function}@{module_name(frame.module or frame.file or '')}"


def module_name(path: str) -> str:
    """The base name without its version: ``libc.so`` for ``/usr/lib/libc-2.31.so``."""
    name = posixpath.basename(path.removesuffix(_DELETED)) or path
    if _PROCESS_OF_PERF_MAP.match(name):
        return "perf.map"
    return _VERSION_OF_LIBRARY.sub(".so", name)


def _without_suffix(name: str) -> str:
    return _SUFFIX_OF_COMPILER.sub("", name)
