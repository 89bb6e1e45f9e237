"""A frame and a stack as text, the same in every output format."""

from __future__ import annotations

import posixpath
from typing import Optional

from rich.cells import cell_len

from ebpftrace.model import Frame, Stack
from ebpftrace.text import escape, shorten

_RUNTIME_MODULES = ("libc.so", "libc-", "libc.musl", "ld-", "libpthread", "libstdc++", "libc++", "[vdso]")


def name(frame: Frame) -> str:
    """The function, else module+0xoffset, else ``??``; escaped, ``(inlined)`` marked."""
    if frame.function:
        return escape(frame.function) + (" (inlined)" if frame.inlined else "")
    return place(frame, full=False) or "??"


def place(frame: Frame, full: bool = True) -> str:
    """``module+0xoffset``, with the module's path or only its last part; empty where unknown."""
    if frame.module is None:
        return ""
    module = frame.module if full else posixpath.basename(frame.module) or frame.module
    return escape(module) + (f"+0x{frame.offset:x}" if frame.offset is not None else "")


def source(frame: Frame, full: bool = True) -> str:
    """``file:line``, with the whole path or only its last part; empty without debug information."""
    if not frame.file:
        return ""
    file = frame.file if full else posixpath.basename(frame.file) or frame.file
    return escape(file) + (f":{frame.line}" if frame.line is not None else "")


def line(frame: Frame, width: int) -> str:
    """One frame in at most ``width`` cells: ``function  file:line  module+0xoffset``.

    The module's whole path is told where there is no function to go by.  Where it is too
    much, the directories of the source file go first, then the middle of the function's name.
    """
    if not frame.function:
        return shorten(place(frame) or name(frame), width)
    most = width // 3
    module = shorten(place(frame, full=False), most)
    for file in (source(frame), shorten(source(frame, full=False), most)):
        room = width - sum(cell_len(part) + 2 for part in (file, module) if part)
        if cell_len(name(frame)) <= room:
            break
    return "  ".join(part for part in (shorten(name(frame), room), file, module) if part)


def site(frame: Frame, width: int) -> str:
    """A frame named in a table cell of ``width``: the function and, where there is room, ``file:line``."""
    function = name(frame)
    file = source(frame, full=False)
    if not file or cell_len(function) + 2 + cell_len(file) > width:
        return shorten(function, width)
    return f"{function}  {file}"


def culprit(stack: Stack) -> Optional[Frame]:
    """The innermost frame outside the C library and other run-time modules, where there is one."""
    for frame in stack.frames:
        module = posixpath.basename(frame.module or "")
        if frame.function and not module.startswith(_RUNTIME_MODULES):
            return frame
    return stack.frames[0] if stack.frames else None
