# SPDX-License-Identifier: Apache-2.0
"""Python code that a thread ran at a call: where CPython keeps its frames, and what their code is named.

The kernel side takes the addresses at the call itself (bpf/python.h); a moment later they would be those of
another.  Code objects live on, so their names, files and lines are read afterwards, through /proc/PID/mem.

CPython 3.11 and 3.12 have the offsets below, the same in all their releases on x86_64; from 3.13 on the
interpreter has them in its memory (``_Py_DebugOffsets``, Include/internal/pycore_debug_offsets.h), in an
order that changes with each minor version.  Later versions and builds without the GIL are not read: ``python
-X perf`` names their code.
Sources: Include/cpython/{code,pystate,unicodeobject}.h, Include/internal/pycore_{frame,interp,runtime,
debug_offsets,interpframe_structs}.h, Objects/locations.md.
"""

from __future__ import annotations

import posixpath
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Callable, NamedTuple, Optional

from ebpftrace.model import Frame
from ebpftrace.unwind.copies import is_native

Read = Callable[[int, int], bytes]
"""(address, count) -> exactly so many bytes of the target's memory.  Raises OSError."""

EVALUATES = "_PyEval_EvalFrameDefault"
"""The C function that runs Python code; one call of it may run several frames."""
SECTION = ".PyRuntime"
"""Where ``_PyRuntime`` is, alone."""

_FILE = re.compile(r"(?:lib)?python3\.(?P<minor>[0-9]{1,2})(?P<flags>[td]*)(?:\.so[.0-9]*)?$")
_FIRST = 11
_COOKIE = b"xdebugpy"
_OWNED_BY_C_STACK = 3
"""FRAME_OWNED_BY_CSTACK, since 3.14 FRAME_OWNED_BY_INTERPRETER: it has no Python code, and marks where C code
entered (3.12 and later)."""


class _Words(NamedTuple):
    """Which word of ``_Py_DebugOffsets`` has an offset; its first is the cookie."""

    next_thread: int
    frame: int
    thread_id: int
    caller: int
    code: int
    instruction: int
    owner: int
    file: int
    name: int
    lines: int
    first_line: int
    instructions: int


_WORDS = {
    13: _Words(21, 23, 24, 29, 30, 31, 33, 35, 37, 38, 39, 43),
    14: _Words(24, 26, 27, 32, 33, 34, 36, 40, 42, 43, 44, 48),
    15: _Words(24, 26, 30, 40, 41, 42, 44, 48, 50, 51, 52, 56),
}
"""By minor version."""
_INTERPRETERS_HEAD, _THREADS_HEAD = 5, 9
"""In every version."""
_LAST = max(_WORDS)

_MAX_CHARACTERS = 1024
_MAX_LINE_BYTES = 1 << 18
_MAX_CODES = 4096
_WORD = 8
_INSTRUCTION = 2
"""Bytes of a code unit."""
_TYPE_NAME = 24
_ASCII_LENGTH, _ASCII_STATE = 16, 32
_BYTES_SIZE, _BYTES_VALUE = 16, 32


class Places(NamedTuple):
    """Where frames are kept: ``struct python_t``, in its order."""

    interpreters: int
    threads: int
    next_thread: int
    thread_id: int
    frame: int
    by_c_frame: int
    of_c_frame: int
    code: int
    instruction: int
    kind: int
    caller: int


class _Objects(NamedTuple):
    """Offsets in a code object, and sizes of the two kinds of compact strings."""

    file: int
    name: int
    lines: int
    first_line: int
    instructions: int
    ascii: int
    compact: int


class Python(NamedTuple):
    """The interpreter of a process."""

    version: str
    places: Places
    objects: _Objects
    entry_byte: int
    """The byte, of the eight with a frame's kind, that shows whether C code called it."""
    entry_value: int
    """The value of that byte if C code called the frame."""
    is_shim: bool
    """A frame that C code called has no code of its own."""


class Code(NamedTuple):
    """A code object."""

    name: str
    file: str
    first_line: int
    lines: bytes
    """Its location table."""


_CODE_3_11 = _Objects(112, 128, 136, 72, 184, 48, 72)
_CODE_3_12 = _Objects(112, 128, 136, 68, 192, 40, 56)


def python_of(path: str, runtime: int, read: Read) -> Optional[Python]:
    """The interpreter whose ``_PyRuntime`` is at an address, in the file of that path.

    None for versions that are not known here; ``version_of`` names them.  Raises OSError.
    """
    match = _FILE.match(posixpath.basename(path))
    minor = int(match["minor"]) if match and not match["flags"] else 0
    if not _FIRST <= minor <= _LAST:
        return None
    if minor in _WORDS:
        return _by_its_own_words(minor, runtime, read)
    if minor == 11:  # a version, as its next one
        return Python(
            "3.11", Places(runtime + 40, 16, 8, 152, 56, 1, 8, 32, 56, 64, 48), _CODE_3_11, 4, 1, False
        )
    places = Places(runtime + 40, 72, 8, 136, 56, 1, 0, 0, 56, 64, 8)
    return Python("3.12", places, _CODE_3_12, 6, _OWNED_BY_C_STACK, True)


def version_of(path: str) -> str:
    """Such as "3.14", of the file of an interpreter; empty for other files, and before 3.11."""
    match = _FILE.match(posixpath.basename(path))
    return f"3.{match['minor']}{match['flags']}" if match and int(match["minor"]) >= _FIRST else ""


def _by_its_own_words(minor: int, runtime: int, read: Read) -> Optional[Python]:
    at = _WORDS[minor]
    raw = read(runtime, _WORD * (max(at) + 1))
    words = struct.unpack(f"<{len(raw) // _WORD}Q", raw)
    version, free_threaded = words[1:3]
    if not raw.startswith(_COOKIE) or version >> 16 != 0x300 + minor or free_threaded:
        return None
    # The target says it: an offset is one within a struct.
    if max(words[_THREADS_HEAD], *(words[number] for number in at)) >= 1 << 16:
        return None
    owner = words[at.owner]
    places = Places(
        interpreters=runtime + words[_INTERPRETERS_HEAD], threads=words[_THREADS_HEAD],
        next_thread=words[at.next_thread], thread_id=words[at.thread_id], frame=words[at.frame],
        by_c_frame=0, of_c_frame=0, code=words[at.code], instruction=words[at.instruction],
        kind=owner & ~7, caller=words[at.caller],
    )  # fmt: skip
    objects = _CODE_3_12._replace(
        file=words[at.file],
        name=words[at.name],
        lines=words[at.lines],
        first_line=words[at.first_line],
        instructions=words[at.instructions],
    )
    return Python(f"3.{minor}", places, objects, owner & 7, _OWNED_BY_C_STACK, True)


class Group(NamedTuple):
    """Python frames that one call of the evaluating C function runs, innermost first."""

    frames: list[Frame]
    entry: Optional[int]
    """An address in the stack frame of that call; None if it is not known."""


class PythonCode:
    """Names of the code of one process's interpreter."""

    def __init__(self, python: Python, read: Read) -> None:
        self._python = python
        self._read = read
        self._known: dict[tuple[int, bytes], Optional[Code]] = {}

    def groups(self, recorded: Sequence[tuple[int, int, int, int]]) -> list[Group]:
        """The frames that each call of the evaluating C function runs, innermost first.

        ``recorded``: address, code object, instruction and kind of each, as the kernel side has them.
        """
        groups: list[Group] = []
        frames: list[Frame] = []
        for address, code, instruction, kind in recorded:
            is_entry = kind.to_bytes(8, "little")[self._python.entry_byte] == self._python.entry_value
            is_shim = is_entry and self._python.is_shim
            if not is_shim:
                frame = self._frame(code, instruction)
                frames += [] if frame is None else [frame]
            if is_entry:
                # What marks the entry is a local variable of the C function (_PyEval_EvalFrameDefault).
                groups.append(Group(frames, address if is_shim else None))
                frames = []
        return [*groups, Group(frames, None)] if frames else groups

    def _frame(self, address: int, instruction: int) -> Optional[Frame]:
        # 3.13 marks some references in their lowest bits.
        address &= ~7
        try:
            code = self._code(address)
        except (OSError, ValueError, struct.error):
            return None
        if code is None:
            return None
        unit = (instruction - address - self._python.objects.instructions) // _INSTRUCTION
        return Frame(code.name, code.file, line_of(code.lines, code.first_line, unit))

    def _code(self, address: int) -> Optional[Code]:
        objects = self._python.objects
        header = self._read(address, objects.instructions)
        # Another object may lie there by now: its pointers tell.
        key = (address, header[8:])
        if key not in self._known:
            if len(self._known) >= _MAX_CODES:
                self._known.clear()
            self._known[key] = self._read_code(header)
        return self._known[key]

    def _read_code(self, header: bytes) -> Optional[Code]:
        objects = self._python.objects

        def pointer(offset: int) -> int:
            return int(struct.unpack_from("<Q", header, offset)[0])

        type_name = self._read(_u64(self._read(pointer(8) + _TYPE_NAME, 8)), 5)
        if type_name != b"code\0":
            return None
        (first_line,) = struct.unpack_from("<i", header, objects.first_line)
        lines = pointer(objects.lines)
        size = min(_u64(self._read(lines + _BYTES_SIZE, 8)), _MAX_LINE_BYTES)
        return Code(
            self._text(pointer(objects.name)),
            self._text(pointer(objects.file)),
            first_line,
            self._read(lines + _BYTES_VALUE, size) if size else b"",
        )

    def _text(self, address: int) -> str:
        """A ``str`` in its compact form (Include/cpython/unicodeobject.h)."""
        objects = self._python.objects
        length = min(_u64(self._read(address + _ASCII_LENGTH, 8)), _MAX_CHARACTERS)
        (state,) = struct.unpack("<I", self._read(address + _ASCII_STATE, 4))
        kind, is_compact, is_ascii = state >> 2 & 7, state >> 5 & 1, state >> 6 & 1
        encoding = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}.get(kind)
        if not is_compact or encoding is None or not length:
            raise ValueError(state)
        start = address + (objects.ascii if is_ascii else objects.compact)
        return self._read(start, length * kind).decode(encoding, "surrogatepass")


def line_of(table: bytes, first_line: int, unit: int) -> Optional[int]:
    """The line of a code unit, by a location table (Objects/locations.md); None where it has none."""
    line, at = first_line, 0
    for units, delta, has_line in _entries(table):
        line += delta
        if at <= unit < at + units:
            return line if has_line and line > 0 else None
        at += units
    return None


def _entries(table: bytes) -> Iterator[tuple[int, int, bool]]:
    """Code units, change of the line, and whether there is one, of each entry."""
    at = 0
    while at < len(table):
        code, units = table[at] >> 3 & 15, (table[at] & 7) + 1
        # The first byte of an entry alone has the highest bit.
        end = at + 1
        while end < len(table) and not table[end] & 0x80:
            end += 1
        delta = code - 10 if 10 <= code <= 12 else _signed(table[at + 1 : end]) if code in (13, 14) else 0
        yield units, delta, code != 15
        at = end


def _signed(raw: bytes) -> int:
    """The first number of variable length: six bits a byte, lowest first, the sign in the lowest."""
    value = shift = 0
    for byte in raw[:6]:
        value |= (byte & 63) << shift
        shift += 6
        if not byte & 64:
            break
    return -(value >> 1) if value & 1 else value >> 1


def _u64(raw: bytes) -> int:
    return int(struct.unpack("<Q", raw)[0])


def with_python(
    frames: Sequence[Frame],
    groups: Sequence[Group],
    frame_at: Callable[[int], Optional[int]],
    evaluators: set[tuple[Optional[str], Optional[int]]],
    are_all: bool = False,
) -> tuple[tuple[Frame, ...], bool]:
    """A stack with the Python frames that each evaluating C function runs, innermost first, behind it.

    And whether all of them have a place there; those that have none are left out.

    ``frame_at`` is the number of the native frame that contains an address, None if it is not known.  This
    decides, as in stripped interpreters the function's part that compilers have moved elsewhere has no name.
    ``evaluators`` are the places (module and offset) in the function that were seen by this; they recognize
    it, and its name does, where only the order is known.

    ``are_all`` means that there are no more groups.  Before 3.12 each call of the function then runs one of
    them (Python/ceval.c: it leaves its last frame only as it returns), so that as many frames with its name
    are all of them.
    """
    native = [number for number, frame in enumerate(frames) if is_native(frame)]
    behind: dict[int, list[Frame]] = {}
    named = [number for number, at in enumerate(native) if frames[at].function == EVALUATES]
    has_named_all = are_all and len(named) == len(groups)
    last = -1
    are_all_placed = True
    for order, group in enumerate(groups):
        if group.entry is not None:
            number = frame_at(group.entry)
        elif has_named_all:
            number = named[order]
        else:
            number = _next_evaluator(frames, native, last, evaluators)
        if number is None or not last < number < len(native):
            are_all_placed = are_all_placed and not group.frames
            continue
        last, at = number, native[number]
        behind[at] = group.frames
        if group.entry is not None and len(evaluators) < _MAX_CODES:
            evaluators.add((frames[at].module, frames[at].offset))
    found: list[Frame] = []
    for at, frame in enumerate(frames):
        is_unnamed = at in behind and frame.function is None
        found += [replace(frame, function=EVALUATES) if is_unnamed else frame, *behind.get(at, ())]
    return tuple(found), are_all_placed


def _next_evaluator(
    frames: Sequence[Frame],
    native: Sequence[int],
    last: int,
    evaluators: set[tuple[Optional[str], Optional[int]]],
) -> Optional[int]:
    """The number of the first native frame after ``last`` that is one; None if it may be another."""
    for number in range(last + 1, len(native)):
        frame = frames[native[number]]
        if frame.function == EVALUATES or (frame.module, frame.offset) in evaluators:
            return number
        if frame.function is None and _FILE.match(posixpath.basename(frame.module or "")):
            return None
    return None
