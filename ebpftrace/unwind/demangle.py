# SPDX-License-Identifier: Apache-2.0
"""Names as their programmers wrote them, each by a library of those who define or maintain the scheme.

* C++ (Itanium C++ ABI 5.1): ``__cxa_demangle`` of the C++ run-time library.
* Rust v0 (RFC 2603): LLVM's demangler (pycxxfilt), else binutils' ``c++filt``.
* Rust before it: names as of C++, with a few escapes of their own.
* D (its ABI, "Name Mangling"): binutils' ``c++filt``.

A name that nothing here can read stays as it is.  Names come from a target's files: where a library can crash
or hang on one, that is the worker's process, which is made to bear it.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from contextlib import suppress
from functools import lru_cache
from typing import Any, Optional

try:
    import pycxxfilt
except ImportError:  # has no build for Python before 3.11
    pycxxfilt = None  # type: ignore[assignment]

MAX_NAME = 4096
"""Longer mangled names are left as they are; demangling can grow a name exponentially."""

_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_LEGACY = re.compile(r"^_ZN.*17h[0-9a-f]{16}E")
_RUST_ESCAPES = {
    "$SP$": "@", "$BP$": "*", "$RF$": "&", "$LT$": "<", "$GT$": ">", "$LP$": "(", "$RP$": ")", "$C$": ",",
}  # fmt: skip
_RUST_UNICODE = re.compile(r"\$u([0-9a-f]{1,6})\$")
_RUST_CRATE_HASH = re.compile(r"\[[0-9a-f]{1,16}\]")
"""What binutils writes behind the name of a crate, of which there may be two of one name."""
_D = re.compile(r"_D[0-9]|_Dmain$")
_SECONDS = 5.0
"""For one name; c++filt takes milliseconds."""


def demangle(name: str) -> str:
    """The name in source form; unchanged where it is not mangled or nothing here can read it."""
    if len(name) > MAX_NAME:
        return name
    if name.startswith("_R"):
        return _rust_v0(name)
    if _D.match(name):
        return _by_binutils("dlang", name) or name
    if not name.startswith("_Z"):
        return name
    plain = _cxa_demangle(name)
    if plain is None:
        return name
    return _rust_legacy(plain) if _RUST_LEGACY.match(name) else plain


def is_mangled(name: str) -> bool:
    """The symbol is of C++, Rust or D, so it says more than the bare name in the debug info."""
    return name.startswith(("_Z", "_R")) or _D.match(name) is not None


def _rust_legacy(name: str) -> str:
    name = _RUST_HASH.sub("", name)
    for escape, plain in _RUST_ESCAPES.items():
        name = name.replace(escape, plain)
    name = _RUST_UNICODE.sub(_character, name)
    return re.sub(r"(^|::)_(?=[<{])", r"\1", name.replace("..", "::"))


def _character(match: re.Match[str]) -> str:
    code = int(match.group(1), 16)
    return chr(code) if 32 <= code < 0xD800 else match.group(0)


def _rust_v0(name: str) -> str:
    mangled = name.partition(".")[0]  # behind the dot is what a linker or optimizer added
    if pycxxfilt is not None:
        try:
            return pycxxfilt.rust_demangle(mangled) or name
        except ValueError:
            return name
    found = _by_binutils("rust", mangled)
    return name if found is None else _RUST_CRATE_HASH.sub("", found)


@lru_cache(maxsize=1 << 12)
def _by_binutils(language: str, name: str) -> Optional[str]:
    command = ["c++filt", f"--format={language}", "--", name]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
        plain = result.stdout.decode("utf-8", "surrogateescape").rstrip("\n")
        return plain if result.returncode == 0 and plain != name else None
    return None


@lru_cache(maxsize=1)
def _libstdcxx() -> Optional[tuple[Any, Any]]:
    try:
        demangler = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return None
    demangler.restype = ctypes.c_void_p
    demangler.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    free.argtypes = [ctypes.c_void_p]
    free.restype = None
    return demangler, free


def _cxa_demangle(name: str) -> Optional[str]:
    library = _libstdcxx()
    if library is None:
        return None
    demangler, free = library
    status = ctypes.c_int()
    found = demangler(name.encode("utf-8", "surrogateescape"), None, None, ctypes.byref(status))
    if not found:
        return None
    try:
        return ctypes.string_at(found).decode("utf-8", "surrogateescape")
    finally:
        free(found)
