# SPDX-License-Identifier: Apache-2.0
"""Functions and lines of an address by DWARF, the inlined ones with their namespaces (libdw).

drgn (0.3.0) finds the inlined functions of functions that stand at the top level of a unit, as gcc writes
them, but not inside of namespaces and classes, as clang and rustc do; and it tells names without either.  So
the search for the function is made here, with the library that drgn itself has loaded: elfutils' libdw
(libdw.h; ``dwarf_getscopes`` does not look into namespaces either, elfutils 0.196).

Runs in the worker process.
"""

from __future__ import annotations

import ctypes
import errno
import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Optional

from ebpftrace.unwind.copies import Name
from ebpftrace.unwind.demangle import demangle, is_mangled

MAX_CHILDREN = 1 << 18
"""Entries that are looked at for one address; the largest functions have some thousands."""
MAX_DEPTH = 64
MAX_FUNCTIONS = 1 << 20
"""Of one unit."""
MAX_INLINED = 64
"""Limit of inlined functions reported for one address; compilers do not nest more."""
MAX_NAME = 1024
_MAX_REFERENCES = 8
"""From an inlined function to what was inlined, to its declaration: two are usual."""
_LOOK_BACK = 32
"""Functions that begin before an address and may hold it: nested ones, and parts moved elsewhere."""

_TAG_CLASS, _TAG_ENUM, _TAG_BLOCK, _TAG_STRUCT, _TAG_UNION, _TAG_INLINED = 0x02, 0x04, 0x0B, 0x13, 0x17, 0x1D
_TAG_CATCH, _TAG_SUBPROGRAM, _TAG_TRY, _TAG_NAMESPACE, _TAG_MODULE = 0x25, 0x2E, 0x32, 0x39, 0x1E
_SCOPES = frozenset(
    {_TAG_CLASS, _TAG_STRUCT, _TAG_NAMESPACE, _TAG_MODULE, _TAG_UNION, _TAG_ENUM, _TAG_SUBPROGRAM}
)
_BLOCKS = frozenset({_TAG_BLOCK, _TAG_CATCH, _TAG_TRY, _TAG_INLINED})
_AT_ABSTRACT_ORIGIN, _AT_SPECIFICATION, _AT_LINKAGE_NAME, _AT_MIPS_LINKAGE_NAME = 0x31, 0x47, 0x6E, 0x2007
_AT_CALL_FILE, _AT_CALL_LINE, _AT_LANGUAGE, _AT_COMP_DIR = 0x58, 0x59, 0x13, 0x1B
_C_READ = 0
_LANGUAGE_D = 0x13
_NO_FILE = "???"
"""What libdw writes for number 0 before DWARF 5, and for what it cannot read."""
_UNNAMED = "(anonymous namespace)"


class _Die(ctypes.Structure):
    """``Dwarf_Die`` (libdw.h)."""

    _fields_ = (
        ("addr", ctypes.c_void_p),
        ("cu", ctypes.c_void_p),
        ("abbrev", ctypes.c_void_p),
        ("padding", ctypes.c_long),
    )


class _Attribute(ctypes.Structure):
    """``Dwarf_Attribute`` (libdw.h)."""

    _fields_ = (
        ("code", ctypes.c_uint),
        ("form", ctypes.c_uint),
        ("value", ctypes.c_void_p),
        ("cu", ctypes.c_void_p),
    )


_die, _attribute = ctypes.POINTER(_Die), ctypes.POINTER(_Attribute)
_pointer, _int, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_word = ctypes.c_uint64
_FUNCTION_CALLBACK = ctypes.CFUNCTYPE(_int, _die, _pointer)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "dwarf_begin": (_pointer, _int, _int),
    "dwarf_setalt": (None, _pointer, _pointer),
    "dwarf_addrdie": (_pointer, _pointer, _word, _die),
    "dwarf_dieoffset": (_word, _die),
    "dwarf_cu_info": (_int, _pointer, _pointer, _pointer, _die, _die, *[_pointer] * 3),
    "dwarf_getfuncs": (ctypes.c_ssize_t, _die, _FUNCTION_CALLBACK, _pointer, ctypes.c_ssize_t),
    "dwarf_getscopes_die": (_int, _die, ctypes.POINTER(_die)),
    "dwarf_child": (_int, _die, _die),
    "dwarf_siblingof": (_int, _die, _die),
    "dwarf_tag": (_int, _die),
    "dwarf_haspc": (_int, _die, _word),
    "dwarf_ranges": (
        ctypes.c_ssize_t, _die, ctypes.c_ssize_t, *[ctypes.POINTER(_word)] * 3,
    ),
    "dwarf_diename": (_text, _die),
    "dwarf_attr": (_pointer, _die, ctypes.c_uint, _attribute),
    "dwarf_attr_integrate": (_pointer, _die, ctypes.c_uint, _attribute),
    "dwarf_formstring": (_text, _attribute),
    "dwarf_formudata": (_int, _attribute, ctypes.POINTER(_word)),
    "dwarf_formref_die": (_pointer, _attribute, _die),
    "dwarf_getsrc_die": (_pointer, _die, _word),
    "dwarf_linesrc": (_text, _pointer, _pointer, _pointer),
    "dwarf_lineno": (_int, _pointer, ctypes.POINTER(_int)),
    "dwarf_getsrcfiles": (_int, _die, ctypes.POINTER(_pointer), ctypes.POINTER(ctypes.c_size_t)),
    "dwarf_filesrc": (_text, _pointer, ctypes.c_size_t, _pointer, _pointer),
}  # fmt: skip
"""What a function returns, and takes (libdw.h)."""


class _Function(NamedTuple):
    """A range of a function's code, and where its entry is."""

    start: int
    end: int
    die: _Die


class _Unit:
    """A unit that has code: its functions by address."""

    def __init__(self, lines: _Die, die: _Die) -> None:
        self.lines = lines
        """The entry that has the line table: of a unit that is split, the part in the program."""
        self.die = die
        self.functions: list[_Function] = []
        self.starts: list[int] = []


@lru_cache(maxsize=1)
def libdw() -> Any:
    """The libdw that this process has loaded, as drgn brings one along.  Raises OSError without one."""
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    path = next((line.split()[-1] for line in maps.splitlines() if "/libdw" in line), "libdw.so.1")
    library = ctypes.CDLL(path)
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise OSError(errno.ENOSYS, f"no {name}", path)
        function.restype, function.argtypes = result, arguments
    return library


class DebugInfo:
    """The debug information of one file.

    Everything in it may be a lie: searches are bounded, and what does not hold together gives no names.
    """

    def __init__(self, fd: int) -> None:
        """Read a file; takes ownership of ``fd``.  Raises OSError where there is nothing to be read."""
        self._units: dict[int, _Unit] = {}
        self._scopes: dict[int, str] = {}
        try:
            self._lib = libdw()
            self._dwarf = self._lib.dwarf_begin(fd, _C_READ)
            if not self._dwarf:
                raise OSError(errno.ENOEXEC, "no debug information that can be read")
        except OSError:
            os.close(fd)
            raise

    def add_supplement(self, fd: int) -> None:
        """Take what dwz(1) moved out of this file; takes ownership of ``fd``."""
        alternate = self._lib.dwarf_begin(fd, _C_READ)
        if alternate:
            self._lib.dwarf_setalt(self._dwarf, alternate)
        else:
            os.close(fd)

    def names(self, address: int) -> list[Name]:
        """Functions at a file address, innermost first; empty where none is known."""
        unit = self._unit(address)
        if unit is None:
            return []
        function = self._function(unit, address)
        if function is None:
            return []
        chain = [function, *self._inlined(function, address)][: MAX_INLINED + 1]
        file, line = self._line(unit, address)
        names = []
        for die in reversed(chain[1:]):
            names.append(Name(self._name(die), file, line, True))
            file, line = self._call(unit, die)
        names.append(Name(self._name(function), file, line, False))
        return names

    def _unit(self, address: int) -> Optional[_Unit]:
        skeleton = _Die()
        if not self._lib.dwarf_addrdie(self._dwarf, address, skeleton):
            return None
        key = int(self._lib.dwarf_dieoffset(skeleton))
        if key not in self._units:
            self._units[key] = self._read_unit(skeleton)
        return self._units[key]

    def _read_unit(self, skeleton: _Die) -> _Unit:
        split = _Die()
        self._lib.dwarf_cu_info(skeleton.cu, None, None, None, split, None, None, None)
        unit = _Unit(skeleton, split if split.addr else skeleton)

        def take(function: Any, _: object) -> int:
            die = _copy(function.contents)
            unit.functions += [_Function(start, end, die) for start, end in self._ranges(die)]
            return len(unit.functions) > MAX_FUNCTIONS

        self._lib.dwarf_getfuncs(unit.die, _FUNCTION_CALLBACK(take), None, 0)
        unit.functions.sort(key=lambda one: (one.start, -one.end))
        unit.starts = [one.start for one in unit.functions]
        return unit

    def _ranges(self, die: _Die) -> Iterator[tuple[int, int]]:
        base, start, end = _word(), _word(), _word()
        offset = 0
        for _ in range(MAX_CHILDREN):
            offset = self._lib.dwarf_ranges(die, offset, base, start, end)
            if offset <= 0:
                return
            yield start.value, end.value

    def _function(self, unit: _Unit, address: int) -> Optional[_Die]:
        """The innermost function that holds an address: of those that do, the one that begins last."""
        at = bisect_right(unit.starts, address)
        for one in reversed(unit.functions[max(at - _LOOK_BACK, 0) : at]):
            if address < one.end:
                return one.die
        return None

    def _inlined(self, function: _Die, address: int) -> list[_Die]:
        """What is inlined at an address, outermost first."""
        found: list[_Die] = []
        inside: Optional[_Die] = function
        looked_at = 0
        for _ in range(MAX_DEPTH):
            parent, inside = inside, None
            for child in self._children(parent):
                looked_at += 1
                if looked_at > MAX_CHILDREN:
                    return found
                tag = self._lib.dwarf_tag(child)
                if tag in _BLOCKS and self._lib.dwarf_haspc(child, address) > 0:
                    inside = _copy(child)
                    found += [inside] if tag == _TAG_INLINED else []
                    break
            if inside is None:
                break
        return found

    def _children(self, parent: Optional[_Die]) -> Iterator[_Die]:
        child = _Die()
        if parent is None or self._lib.dwarf_child(parent, child):
            return
        yield child
        while not self._lib.dwarf_siblingof(child, child):
            yield child

    def _line(self, unit: _Unit, address: int) -> tuple[Optional[str], Optional[int]]:
        line = self._lib.dwarf_getsrc_die(unit.lines, address)
        if not line:
            return None, None
        number = _int()
        self._lib.dwarf_lineno(line, number)
        return self._path(unit, self._lib.dwarf_linesrc(line, None, None)), number.value or None

    def _call(self, unit: _Unit, inlined: _Die) -> tuple[Optional[str], Optional[int]]:
        """Where an inlined function was called."""
        file, line = self._number(inlined, _AT_CALL_FILE), self._number(inlined, _AT_CALL_LINE)
        files, count = _pointer(), ctypes.c_size_t()
        # The table of a unit that is split has the files of its entries; its lines are in the other one.
        if file is None or self._lib.dwarf_getsrcfiles(unit.die, files, count):
            return None, line
        return self._path(unit, self._lib.dwarf_filesrc(files, file, None, None)), line or None

    def _path(self, unit: _Unit, name: Optional[bytes]) -> Optional[str]:
        path = _decoded(name)
        if path is None or path == _NO_FILE:
            return None
        attribute = _Attribute()
        if not path.startswith("/") and self._lib.dwarf_attr(unit.lines, _AT_COMP_DIR, attribute):
            directory = _decoded(self._lib.dwarf_formstring(attribute)) or ""
            return f"{directory}/{path}" if directory.startswith("/") else path
        return path

    def _number(self, die: _Die, code: int) -> Optional[int]:
        attribute, value = _Attribute(), _word()
        if not self._lib.dwarf_attr(die, code, attribute):
            return None
        return None if self._lib.dwarf_formudata(attribute, value) else value.value

    def _name(self, die: _Die) -> Optional[str]:
        """Its name with namespaces: by the symbol it has or would have, else by what it stands in."""
        for code in (_AT_LINKAGE_NAME, _AT_MIPS_LINKAGE_NAME):
            attribute = _Attribute()
            if self._lib.dwarf_attr_integrate(die, code, attribute):
                symbol = _decoded(self._lib.dwarf_formstring(attribute))
                if symbol and is_mangled(symbol):
                    return demangle(symbol)[:MAX_NAME]
        origin = self._declaration(die)
        name = _decoded(self._lib.dwarf_diename(die))
        return None if name is None else f"{self._scope(origin)}{name}"[:MAX_NAME]

    def _declaration(self, die: _Die) -> _Die:
        """Where a function is declared, which is in its class or namespace."""
        for _ in range(_MAX_REFERENCES):
            attribute, other = _Attribute(), _Die()
            if not (
                self._lib.dwarf_attr(die, _AT_ABSTRACT_ORIGIN, attribute)
                or self._lib.dwarf_attr(die, _AT_SPECIFICATION, attribute)
            ) or not self._lib.dwarf_formref_die(attribute, other):
                break
            die = other
        return die

    def _scope(self, die: _Die) -> str:
        """The namespaces, classes and functions that a function stands in, each with what divides them."""
        if die.addr not in self._scopes:
            self._scopes[die.addr] = self._read_scope(die)
        return self._scopes[die.addr]

    def _read_scope(self, die: _Die) -> str:
        scopes = ctypes.POINTER(_Die)()
        count = self._lib.dwarf_getscopes_die(die, scopes)
        if count <= 0:
            return ""
        try:
            between = [_copy(scopes[at]) for at in range(1, min(count, MAX_DEPTH))]
        finally:
            _libc_free(scopes)
        names = [
            _decoded(self._lib.dwarf_diename(one)) or _UNNAMED
            for one in reversed(between)
            if self._lib.dwarf_tag(one) in _SCOPES
        ]
        divider = "." if self._number(between[-1], _AT_LANGUAGE) == _LANGUAGE_D else "::"
        return "".join(f"{name}{divider}" for name in names)


def _copy(die: _Die) -> _Die:
    return _Die(die.addr, die.cu, die.abbrev, die.padding)


def _decoded(text: Optional[bytes]) -> Optional[str]:
    return text[: 4 * MAX_NAME].decode("utf-8", "surrogateescape") if text else None


def _libc_free(pointer: Any) -> None:
    free = ctypes.CDLL(None).free
    free.argtypes, free.restype = [_pointer], None
    free(pointer)
