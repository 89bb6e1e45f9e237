# SPDX-License-Identifier: Apache-2.0
"""What the unwinder knows of particular run-times: where Go's stacks end, and names that libraries strip.

libstdc++, GLib and libgomp each pass a start routine of their own to pthread_create, a static function whose
symbol distributions strip; the function that the thread then calls is in an object that is freed at the end
of the thread. Sources: libstdc++-v3/src/c++11/thread.cc (execute_native_thread_routine), glib/gthread-posix.c
(g_thread_proxy), libgomp/team.c (gomp_thread_start).

Go writes no unwind tables, but its code keeps frame pointers, which end with a goroutine's stack.  The
runtime does much of its own work, such as growing the heap, and calls C, on a thread's own stack (g0).  Then
the calling goroutine is on another stack, of which there is no copy, and what lies above on g0 are frames of
the scheduler that were left for good (gogo) and called nothing of this.
Source: Go's runtime/asm_amd64.s and sys_linux_amd64.s (rt0_go, mstart, clone; systemstack, mcall, asmcgocall,
morestack, cgocallback).
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

from ebpftrace.model import Frame

_START_ROUTINES = {
    "libstdc++.so": "std::thread's start routine",
    "libglib-2.0.so": "GThread's start routine",
    "libgomp.so": "OpenMP's start routine",
}


def with_library_routine(frame: Frame) -> Frame:
    """The frame of a start routine, with a description in place of a name if its symbol is stripped."""
    library = posixpath.basename(frame.module or "")
    known = next((text for name, text in _START_ROUTINES.items() if library.startswith(name)), None)
    return frame if frame.function is not None or known is None else replace(frame, function=known)


NOTE_GO_SWITCHED = "Go switched stacks: the goroutine that asked for this is on another one, not copied"
_GO_BOTTOMS = ("runtime.rt0_go", "runtime.mstart", "runtime.clone")
_GO_SWITCHES = frozenset(
    f"runtime.{name}" for name in ("systemstack", "mcall", "asmcgocall", "morestack", "cgocallback")
)


def is_bottom_of_go(frames: Sequence[Frame]) -> bool:
    """Whether the last frame is the function in which threads of Go's runtime begin."""
    return bool(frames) and _plain(frames[-1].function) in _GO_BOTTOMS


def until_go_switched(frames: Sequence[Frame]) -> Optional[Sequence[Frame]]:
    """The frames up to the function that switched to this stack from another; None if none did.

    It calls the runtime or C code on another stack than the goroutine's, or vice versa.
    """
    for number, frame in enumerate(frames):
        if _plain(frame.function) in _GO_SWITCHES:
            return frames[: number + 1]
    return None


def _plain(function: Optional[str]) -> str:
    # The linker marks assembly: runtime.mstart.abi0.
    return (function or "").partition(".abi")[0]
