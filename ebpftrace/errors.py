# SPDX-License-Identifier: Apache-2.0
"""Errors that are reported to the user as one line with the remedy."""

from __future__ import annotations

import errno
import os

STATUS_INTERRUPTED = 130
"""What a shell reports for a process ended by SIGINT."""


RAISE_LIMIT = {
    errno.EMFILE: "raise the limit it runs under (ulimit -n)",
    errno.ENFILE: "raise the limit of this host (sysctl fs.file-max)",
}
"""The remedy for "too many open files", by errno."""


class EbpftraceError(Exception):
    """An error that is reported to the user in one line.

    ``what`` says what is wrong, ``remedy`` is the command or step that fixes it (may be empty).  Both are
    printable: code that raises the error has escaped text from the target.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class CannotTrace(EbpftraceError):
    """Nothing could be traced or read, so that the command line exits with status 1."""


class TracerFailed(EbpftraceError):
    """The tracer's process could not be started, or ended without saying why it could not trace."""


def how_to_be_permitted() -> str:
    """The remedy if the kernel denies access (ptrace(2), "Ptrace access mode checking")."""
    if os.geteuid() != 0:
        return "run as root"
    return "root is refused by a security module, in a container, or where it lacks CAP_SYS_PTRACE"
