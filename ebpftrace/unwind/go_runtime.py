# SPDX-License-Identifier: Apache-2.0
"""Recognizes the ends of stacks in Go programs by function names of Go's runtime.

Go writes no unwind tables, but its code keeps frame pointers, which end with a goroutine's stack.  The
runtime does much of its own work, such as growing the heap, and calls C, on a thread's own stack (g0).  Then
the calling goroutine is on another stack, of which there is no copy, and what lies above on g0 are frames of
the scheduler that were left for good (gogo) and called nothing of this.
Source: Go's runtime/asm_amd64.s and sys_linux_amd64.s (rt0_go, mstart, clone; systemstack, mcall, asmcgocall,
morestack, cgocallback).
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
    """Whether the last frame is the function in which threads of Go's runtime begin."""
    return bool(frames) and _plain(frames[-1].function) in _BOTTOMS


def until_switch(frames: Sequence[Frame]) -> Optional[Sequence[Frame]]:
    """The frames up to the function that switched to this stack from another; None if none did.

    It calls the runtime or C code on another stack than the goroutine's, or vice versa.
    """
    for number, frame in enumerate(frames):
        if _plain(frame.function) in _SWITCHES:
            return frames[: number + 1]
    return None


def _plain(function: Optional[str]) -> str:
    # The linker marks assembly: runtime.mstart.abi0.
    return (function or "").partition(".abi")[0]
