"""The one kind of failure a user is told of: a clear line, and what to do about it."""

from __future__ import annotations


class CannotTrace(Exception):
    """Something the user can be told in one line; the command line exits with status 1.

    ``what`` says what is wrong, ``remedy`` the command or step that mends it (may be empty).
    Both are fit to print: text from the target in them has been escaped by the raiser.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy
