"""Names as their programmers wrote them: C++ by the C++ run-time library, Rust by its few rules.

Sources: Itanium C++ ABI 5.1 and ``__cxa_demangle``; Rust RFC 2603 (v0) and rustc's legacy mangling.
"""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache
from typing import Any, Optional

MAX_NAME = 4096
"""Longer mangled names are left as they are; demangling can grow a name exponentially."""

_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_LEGACY = re.compile(r"^_ZN.*17h[0-9a-f]{16}E")
_RUST_ESCAPES = {
    "$SP$": "@", "$BP$": "*", "$RF$": "&", "$LT$": "<", "$GT$": ">", "$LP$": "(", "$RP$": ")", "$C$": ",",
}  # fmt: skip
_RUST_UNICODE = re.compile(r"\$u([0-9a-f]{1,6})\$")
_V0_IDENTIFIER = re.compile(r"(?:s[0-9a-zA-Z]*_)?(u?)([1-9][0-9]*)_?")


def demangle(name: str) -> str:
    """The name in source form; unchanged where it is not mangled or nothing here can read it."""
    if len(name) > MAX_NAME:
        return name
    if name.startswith("_R"):
        return _rust_v0(name) or name
    if not name.startswith("_Z"):
        return name
    plain = _cxa_demangle(name)
    if plain is None:
        return name
    return _rust_legacy(plain) if _RUST_LEGACY.match(name) else plain


def is_mangled(name: str) -> bool:
    """The symbol is of C++ or Rust, so it says more than the bare name in the debug info."""
    return name.startswith(("_Z", "_R"))


def _rust_legacy(name: str) -> str:
    name = _RUST_HASH.sub("", name)
    for escape, plain in _RUST_ESCAPES.items():
        name = name.replace(escape, plain)
    name = _RUST_UNICODE.sub(_character, name)
    return re.sub(r"(^|::)_(?=[<{])", r"\1", name.replace("..", "::"))


def _character(match: re.Match[str]) -> str:
    code = int(match.group(1), 16)
    return chr(code) if 32 <= code < 0xD800 else match.group(0)


def _rust_v0(name: str) -> Optional[str]:
    """The path of a v0 symbol, without generic arguments: its identifiers in order.

    Enough to know the function; the full grammar of RFC 2603 is not worth its size here.
    """
    parts: list[str] = []
    at = name.find("C", 2)
    while 0 <= at < len(name) and len(parts) < 32:
        match = _V0_IDENTIFIER.search(name, at)
        if match is None:
            break
        size, start = int(match.group(2)[:4]), match.end()
        word = name[start : start + size]
        if match.group(1) == "" and word.isidentifier():
            parts.append(word)
        at = start + size
    return "::".join(parts) or None


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
