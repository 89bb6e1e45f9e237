# SPDX-License-Identifier: Apache-2.0
"""State of this whole process: its signal handlers, environment and mounts, garbage collector and limits.

If the package is used as a library, signal handlers, environment variables and mounts belong to the caller;
only the program ``ebpftrace`` changes them.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NEEDED_FILES = 64
"""A trace of one process has some 50 files open at once (seen on Linux 6.18, for either kind of trace)."""

_claimed = False


def claim() -> None:
    """Allow changes of the whole process; called only by the program's ``main``."""
    global _claimed
    _claimed = True


def is_claimed() -> bool:
    """Whether signal handlers, the environment and mounts may be changed."""
    return _claimed


@contextmanager
def collector_off() -> Iterator[None]:
    """Disable Python's cycle collector, which would visit a growing number of objects again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def raise_file_limit() -> None:
    """Raise our limit of open files to the hard limit, and check that it suffices for tracing.

    Without the check bcc prints messages of its own that do not name the cause.  A COMMAND was forked before
    and keeps its limit.  Raises OSError (EMFILE, ENFILE).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a hard limit beyond fs.nr_open
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened: list[int] = []
    try:
        for _ in range(_NEEDED_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 - closed on failure
    finally:
        for descriptor in opened:
            os.close(descriptor)
