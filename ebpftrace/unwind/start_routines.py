# SPDX-License-Identifier: Apache-2.0
"""Names for start routines in stripped libraries that start all their threads with the same routine.

Each of these libraries passes its own start routine to pthread_create, a static function whose symbol
distributions strip; the function that the thread then calls is in an object that is freed at the end of the
thread.  Sources: libstdc++-v3/src/c++11/thread.cc (execute_native_thread_routine), glib/gthread-posix.c
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
    """The frame of a start routine, with a description in place of a name if its symbol is stripped."""
    library = posixpath.basename(frame.module or "")
    known = next((text for name, text in _OF_LIBRARY.items() if library.startswith(name)), None)
    return frame if frame.function is not None or known is None else replace(frame, function=known)
