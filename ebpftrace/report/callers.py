# SPDX-License-Identifier: Apache-2.0
"""A place in the program in one line: the user's own functions, innermost first."""

from __future__ import annotations

from rich.cells import cell_len

from ebpftrace import frames
from ebpftrace.model import Frame, Stack
from ebpftrace.text import escape, shorten

MAX_CALLERS = 3
_OUTERMOST = "_start"
"""Calls main, in every program."""


def where(stack: Stack, width: int) -> str:
    """The callers outside run-time libraries, innermost first, as many as there is width for."""
    names = [function_name(frame) for frame in callers(stack)]
    line = shorten(names[0], width) if names else "no stack"
    for name in names[1:MAX_CALLERS]:
        longer = f"{line} < {name}"
        if cell_len(longer) > width:
            break
        line = longer
    return line


def callers(stack: Stack) -> list[Frame]:
    """The frames outside run-time libraries, innermost first; empty where there is no stack."""
    first = frames.culprit(stack)
    if first is None:
        return []
    after = stack.frames[stack.frames.index(first) :]
    own = [frame for frame in after if frame.module == first.module and frame.function != _OUTERMOST]
    return own or [first]


def function_name(frame: Frame) -> str:
    """The function, fit for a screen."""
    return escape(frame.function) if frame.function else frames.name(frame)
