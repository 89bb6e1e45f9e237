# SPDX-License-Identifier: Apache-2.0
"""The standard streams, some of which whoever starts us may have closed."""

from __future__ import annotations

import errno
import os
import sys

_STDOUT, _STDERR = 1, 2


def hold() -> None:
    """Open what is closed of the standard descriptors, so that no other file gets its number.

    What is written to a closed stderr is gone; to a closed stdout it fails as before (EBADF).  A COMMAND
    inherits none of them: for it they are as closed as they were.
    """
    for descriptor in range(_STDERR + 1):
        if not _is_open(descriptor):
            # The kernel gives the lowest number that is free, which is this one.
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
    """Raise OSError (EBADF) where nothing can be written to stdout, because it is closed."""
    try:
        os.write(_STDOUT, b"")
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


def stdout_is_closed() -> bool:
    """Whether nothing can be written to stdout, because it is closed."""
    try:
        check_stdout()
    except OSError:
        return True
    return False


def drop_stdout() -> None:
    """Let Python flush what is left to nowhere when it ends: nobody can take it."""
    _drop(_STDOUT)


def drop_stderr() -> None:
    """As ``drop_stdout``; else Python 3.12 ends with a status of its own (120)."""
    _drop(_STDERR)


def _drop(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
