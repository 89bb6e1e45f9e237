# SPDX-License-Identifier: Apache-2.0
"""A frame and a stack as text, the same in every output format."""

from __future__ import annotations

import posixpath
from typing import Optional

from rich.cells import cell_len

from ebpftrace.model import Frame, Stack
from ebpftrace.text import escape, shorten
from ebpftrace.wrappers import is_of_libc, users_frame

_MADE_CODE = "[jit]"
"""Module of code made at run time (``unwind.resolve.JIT``): it is no file, so its offsets are addresses."""
_MIN_NAME = 40
"""Cells for a function's name on the line with its location; with fewer, it gets a line of its own."""
MAX_CALLERS = 3
_OUTERMOST = "_start"
"""Calls main, in every program."""


def name(frame: Frame) -> str:
    """The function, else module+0xoffset, else ``??``; escaped, ``(inlined)`` marked."""
    if frame.function:
        return escape(frame.function) + (" (inlined)" if frame.inlined else "")
    return place(frame, full=False) or "??"


def place(frame: Frame, full: bool = True) -> str:
    """``module+0xoffset``, with the module's path or only the last part of it; empty if unknown."""
    if frame.module is None:
        return ""
    module = frame.module if full else posixpath.basename(frame.module) or frame.module
    return escape(module) + _offset(frame)


def _offset(frame: Frame) -> str:
    if frame.module is None or frame.offset is None:
        return ""
    return f" 0x{frame.offset:x}" if frame.module == _MADE_CODE else f"+0x{frame.offset:x}"


def source(frame: Frame, full: bool = True) -> str:
    """``file:line``, with the whole path or only the last part of it; empty without debug information."""
    if not frame.file:
        return ""
    file = frame.file if full else posixpath.basename(frame.file) or frame.file
    return escape(file) + _number(frame)


def _number(frame: Frame) -> str:
    return f":{frame.line}" if frame.file and frame.line is not None else ""


def line(frame: Frame, width: int) -> str:
    """One frame in at most ``width`` cells: ``function  file:line  module+0xoffset``.

    The module's whole path is given only if there is no function.  If the line is too long, the directories
    of the source file are left out first, then the middle of names; numbers are never cut.
    """
    if not frame.function:
        return _cut(place(frame) or name(frame), _offset(frame), width)
    for places in (_places(frame, source(frame)), _places(frame, source(frame, full=False))):
        if cell_len(name(frame)) + cell_len(places) <= width:
            return name(frame) + places
    places = _places(frame, source(frame, full=False), width // 3)
    return shorten(name(frame), width - cell_len(places)) + places


def lines(frame: Frame, width: int) -> list[str]:
    """As ``line``, but if little of a long name would be left, the function gets a line of its own."""
    places = _places(frame, source(frame, full=False))
    available = width - cell_len(places)
    if not frame.function or available >= min(cell_len(name(frame)), _MIN_NAME):
        return [line(frame, width)]
    if cell_len(places) - 2 > width:
        places = _places(frame, source(frame, full=False), width // 2 - 1)
    return [shorten(name(frame), width), places[2:]]


def _places(frame: Frame, file: str, limit: Optional[int] = None) -> str:
    """``  file:line  module+0xoffset``, each in at most ``limit`` cells."""
    module = place(frame, full=False)
    if limit is not None:
        file, module = _cut(file, _number(frame), limit), _cut(module, _offset(frame), limit)
    return "".join(f"  {part}" for part in (file, module) if part)


def _cut(text: str, number: str, width: int) -> str:
    """Cut the middle out of the text before the number at its end."""
    return shorten(text[: len(text) - len(number)], max(width - len(number), 0)) + number


def site(frame: Frame, width: int) -> str:
    """A frame in a table cell of ``width``: the function and, if it fits, ``file:line``."""
    function = name(frame)
    file = source(frame, full=False)
    if not file or cell_len(function) + 2 + cell_len(file) > width:
        return shorten(function, width)
    return f"{function}  {file}"


def called(frame: Frame) -> str:
    """The function, else module+0xoffset, to be used in a sentence; the sentence is escaped later."""
    if frame.function:
        return frame.function
    return f"{posixpath.basename(frame.module)}{_offset(frame)}" if frame.module else "??"


def culprit(stack: Stack) -> Optional[Frame]:
    """The frame that names a stack: the user's own, else the innermost one outside the C library."""
    own = users_frame(stack.frames)
    if own is not None:
        return own
    beyond = (frame for frame in stack.frames if not is_of_libc(frame))
    return next(beyond, stack.frames[0] if stack.frames else None)


def where(stack: Stack, width: int) -> str:
    """The callers outside run-time libraries, innermost first, as many as there is width for."""
    names = [function_name(frame) for frame in callers(stack)]
    line = shorten(names[0], width) if names else "no stack"
    for caller in names[1:MAX_CALLERS]:
        longer = f"{line} < {caller}"
        if cell_len(longer) > width:
            break
        line = longer
    return line


def callers(stack: Stack) -> list[Frame]:
    """The frames outside run-time libraries, innermost first; empty where there is no stack.

    Where they begin with made code that has no name, the function that it called comes first, such as the
    JVM's ``Unsafe_AllocateMemory0``, and of the addresses only one follows: they tell a reader nothing.
    """
    first = culprit(stack)
    if first is None:
        return []
    at = stack.frames.index(first)
    after = stack.frames[at:]
    own = [frame for frame in after if frame.module == first.module and frame.function != _OUTERMOST]
    if first.module == _MADE_CODE and not first.function and at and stack.frames[at - 1].function:
        return [stack.frames[at - 1], first, *(frame for frame in own if frame.function)]
    return own or [first]


def function_name(frame: Frame) -> str:
    """The function, fit for a screen."""
    return escape(frame.function) if frame.function else name(frame)
