# SPDX-License-Identifier: Apache-2.0
"""Which calls to trace: ``-e trace=SET`` as strace(1) reads it, within what is traced here."""

from __future__ import annotations

from collections.abc import Iterable

MEMORY = ("mmap", "munmap", "mremap", "brk", "mprotect", "madvise")
PROCESS = ("clone", "clone3", "fork", "vfork", "execve", "exit", "exit_group")
CALLS = (*MEMORY, *PROCESS)
NEVER_RETURN = ("exit", "exit_group")

_SETS = {"memory": MEMORY, "process": PROCESS, "all": CALLS, "none": ()}
_QUALIFIERS = ("trace=", "t=")


class SelectionError(ValueError):
    """The set is malformed, or names a call that is not traced."""


def select(expressions: Iterable[str]) -> frozenset[str]:
    """The calls that the values of the ``-e`` options name; all calls if there is none.

    As in strace the last option counts.  Raises SelectionError with a line that says what is wrong.
    """
    chosen = frozenset(CALLS)
    for expression in expressions:
        chosen = _set(expression)
    return chosen


def _set(expression: str) -> frozenset[str]:
    for qualifier in _QUALIFIERS:
        if expression.startswith(qualifier):
            expression = expression[len(qualifier) :]
            break
    else:
        if "=" in expression:
            kind = expression.partition("=")[0]
            raise SelectionError(f"-e {kind}=: only -e trace=SET is understood")
    is_negated = expression.startswith("!")
    named = {call for item in expression.lstrip("!").split(",") for call in _members(item)}
    return frozenset(CALLS) - named if is_negated else frozenset(named)


def _members(item: str) -> tuple[str, ...]:
    name = item.lstrip("%?")
    if name in _SETS:
        return _SETS[name]
    if name in CALLS:
        return (name,)
    if item.startswith("?"):  # as in strace, an unknown call is then no error
        return ()
    raise SelectionError(
        f"{item!a} is not traced here: {', '.join(CALLS)}, and the sets %memory, %process and all are"
    )
