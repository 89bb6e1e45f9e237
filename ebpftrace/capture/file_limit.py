# SPDX-License-Identifier: Apache-2.0
"""The limit of open files, which must suffice for programs, tables and probes."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

_NEEDED = 64
"""A trace of one process has some 50 files open at once (seen on Linux 6.18, for either kind of trace)."""


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
        for _ in range(_NEEDED):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 - closed if one fails
    finally:
        for descriptor in opened:
            os.close(descriptor)
