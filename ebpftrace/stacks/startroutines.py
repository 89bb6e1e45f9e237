# SPDX-License-Identifier: Apache-2.0
"""What a thread's start routine is where it lies in a stripped library that starts all its threads alike.

Each of these libraries gives pthread_create one start routine of its own, a static function whose symbol
distributions strip; what the thread then calls is in an object that is freed when the thread ends.
Sources: libstdc++-v3/src/c++11/thread.cc (execute_native_thread_routine), glib/gthread-posix.c
(g_thread_proxy), libgomp/team.c (gomp_thread_start).
"""

from __future__ import annotations

import posixpath
from dataclasses import replace

from ebpftrace.model import Frame

_OF_LIBRARY = {
    "libstdc++.so": "std::thread's start routine",
    "libglib-2.0.so": "GThread's start routine",
    "libgomp.so": "OpenMP's start routine",
}


def with_library_routine(frame: Frame) -> Frame:
    """The frame of a start routine, with what it is for where its symbol is gone."""
    library = posixpath.basename(frame.module or "")
    known = next((text for name, text in _OF_LIBRARY.items() if library.startswith(name)), None)
    return frame if frame.function is not None or known is None else replace(frame, function=known)
