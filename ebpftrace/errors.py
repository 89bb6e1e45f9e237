# SPDX-License-Identifier: Apache-2.0
"""The one kind of failure a user is told of: a clear line, and what to do about it.  Of Ctrl-C, none."""

from __future__ import annotations

import errno

STATUS_INTERRUPTED = 130
"""What a shell reports for a process ended by SIGINT."""


RAISE_LIMIT = {
    errno.EMFILE: "raise the limit it runs under (ulimit -n)",
    errno.ENFILE: "raise the limit of this host (sysctl fs.file-max)",
}
"""What mends "too many open files"."""


class CannotTrace(Exception):
    """Something the user can be told in one line; the command line exits with status 1.

    ``what`` says what is wrong, ``remedy`` the command or step that mends it (may be empty).
    Both are fit to print: text from the target in them has been escaped by the raiser.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
