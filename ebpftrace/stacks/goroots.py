# SPDX-License-Identifier: Apache-2.0
"""Where the stacks of Go programs end, by the names of Go's runtime.

Go writes no unwind tables; its code keeps frame pointers.  A goroutine's stack ends by them.  The runtime
does much of its own work, such as growing the heap, and calls C, on a thread's own stack (g0): a walk may
go on to the bottom of g0, but the goroutine that asked is on another stack, of which there is no copy.
Source: Go's runtime/asm_amd64.s and sys_linux_amd64.s (rt0_go, mstart, clone; systemstack, mcall,
asmcgocall, morestack, cgocallback).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from ebpftrace.model import Frame

NOTE_OTHER_STACK = "Go switched stacks: the goroutine that asked for this is on another one, not copied"
_BOTTOMS = ("runtime.rt0_go", "runtime.mstart", "runtime.clone")
_SWITCHES = frozenset(
    f"runtime.{name}" for name in ("systemstack", "mcall", "asmcgocall", "morestack", "cgocallback")
)


def is_bottom(frames: Sequence[Frame]) -> bool:
    """The last frame is where a thread that Go's runtime made begins."""
    return bool(frames) and _plain(frames[-1].function) in _BOTTOMS


def is_switched(frames: Sequence[Frame]) -> bool:
    """A goroutine had its runtime do this, or C, or C had a goroutine do it."""
    return any(_plain(frame.function) in _SWITCHES for frame in frames)


def _plain(function: Optional[str]) -> str:
    # The linker marks assembly: runtime.mstart.abi0.
    return (function or "").partition(".abi")[0]
