# SPDX-License-Identifier: Apache-2.0
"""Room for the files that tracing opens: programs, tables, probes."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

_NEEDED = 64
"""A trace of one process has some 50 files open at once (seen on Linux 6.18, for either kind of trace)."""


def make_room() -> None:
    """Raise our limit of open files as far as we may, and find out whether what tracing opens fits.

    bcc would print lines of its own, and not say why it fails.  A COMMAND that was forked before keeps the
    limit that it was started with.  Raises OSError (EMFILE, ENFILE).
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
