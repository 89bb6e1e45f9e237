# SPDX-License-Identifier: Apache-2.0
"""Run-times whose pointers the search can't recognise, because they are encoded."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ebpftrace.vmas import Vmas

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

Go, CPython, Ruby, .NET, Erlang, OCaml and JavaScriptCore are not among them: their pointers are plain, or
tagged in the low bits.  jemalloc and glibc encode only links between freed blocks, which do not matter.
"""
_PATTERNS = tuple((re.compile(pattern), why) for pattern, why in _DISGUISES)


def disguised_pointers(vmas: Vmas) -> str:
    """Why pointers to mappings may be encoded in this process; empty if nothing indicates that."""
    names = {kind.path for kind in vmas.kinds if kind.inode and "x" in kind.perms}
    for name in sorted(PurePosixPath(path).name for path in names):
        for pattern, why in _PATTERNS:
            if pattern.fullmatch(name.removesuffix(" (deleted)")):
                return why
    return ""
