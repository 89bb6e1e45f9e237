# SPDX-License-Identifier: Apache-2.0
"""What happened to the traced tasks, as the kernel side tells it.

Times are nanoseconds of ``CLOCK_MONOTONIC``; numbers are as the kernel's registers held them, unsigned,
but ``returned``, which is signed.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

from ebpftrace.model import Stack


class CloneMemory(NamedTuple):
    """What a clone or clone3 call names by pointers, read when it returned."""

    arguments: tuple[int, ...]
    """``struct clone_args`` (clone3(2)), 11 words; zeros where it was shorter."""
    fetched: int
    """Bytes of it that could be read; 0 for clone, and where it was too short or unreadable."""
    parent_tid: Optional[int]
    """What CLONE_PARENT_SETTID left in memory; None where not asked for or unreadable."""
    pidfd: Optional[int]
    """What CLONE_PIDFD left in memory, likewise."""


class Returned(NamedTuple):
    """A call returned."""

    at: int
    tid: int
    tgid: int
    name: str
    arguments: tuple[int, ...]
    """Six, whatever the call takes."""
    returned: int
    entered_at: int
    """0 where it was not recorded."""
    lost: int
    """Calls lost since the trace began, before this one."""
    clone: Optional[CloneMemory] = None


class Leaves(NamedTuple):
    """A call that never returns began: exit or exit_group."""

    at: int
    tid: int
    tgid: int
    name: str
    arguments: tuple[int, ...]
    lost: int


class Text(NamedTuple):
    """A string of an execve call."""

    pointer: int
    content: Optional[bytes]
    """Without its NUL; None where it could not be read."""
    is_whole: bool = True


class Executes(NamedTuple):
    """An execve call began; it returns, or succeeds, later."""

    at: int
    tid: int
    tgid: int
    path: Text
    argv: int
    strings: tuple[Text, ...]
    has_more: bool
    """There are more strings than were read."""
    open_at: Optional[int]
    """Where argv could not be read on; None where it could."""
    envp: int
    variables: int
    """Variables in envp; negative where none could be read."""
    has_more_variables: bool
    lost: int


class Executed(NamedTuple):
    """A task runs another program now; a thread that executes takes its leader's tid."""

    at: int
    tid: int
    tgid: int
    old_tid: int
    lost: int


class Ended(NamedTuple):
    """A task is gone."""

    at: int
    tid: int
    tgid: int
    code: int
    """As wait(2) encodes it."""
    lost: int


class Stacked(NamedTuple):
    """The stack of the call of the same task and time, which comes right before it."""

    at: int
    tid: int
    stack: Stack


Event = Union[Returned, Leaves, Executes, Executed, Ended, Stacked]
