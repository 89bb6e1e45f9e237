# SPDX-License-Identifier: Apache-2.0
"""The standard streams, some of which may have been closed by the process that started this one."""

from __future__ import annotations

import errno
import os
import sys

_STDOUT, _STDERR = 1, 2


def hold() -> None:
    """Open those standard descriptors that are closed, so that no other file gets their numbers.

    Output to a closed stderr is discarded; output to a closed stdout still fails (EBADF).  A COMMAND does not
    inherit the new descriptors, so for it they stay closed.
    """
    for descriptor in range(_STDERR + 1):
        if not _is_open(descriptor):
            # The kernel returns the lowest free number, which is this one.
            os.open(os.devnull, os.O_WRONLY if descriptor == _STDERR else os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def check_stdout() -> None:
    """Raise ``OSError`` (EBADF) if stdout is closed."""
    try:
        os.write(_STDOUT, b"")
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def stdout_is_closed() -> bool:
    """Whether stdout is closed."""
    try:
        check_stdout()
    except OSError:
        return True
    return False


def drop_stdout() -> None:
    """Discard the output that Python flushes at exit, because it can't be written."""
    _drop(_STDOUT)


def drop_stderr() -> None:
    """As ``drop_stdout``; otherwise Python 3.12 exits with status 120."""
    _drop(_STDERR)


def _drop(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
