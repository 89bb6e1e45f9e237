# SPDX-License-Identifier: Apache-2.0
"""Events of the traced tasks, as the BPF programs send them, and their order where several CPUs send them.

Times are nanoseconds of ``CLOCK_MONOTONIC``; numbers are the unsigned values of registers, except
``returned``, which is signed.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Generic, NamedTuple, Optional, Protocol, TypeVar, Union

from ebpftrace.model import Stack


class CloneMemory(NamedTuple):
    """Memory that a clone or clone3 call points to, read when it returned."""

    arguments: tuple[int, ...]
    """``struct clone_args`` (clone3(2)) as 11 words, padded with zeros."""
    fetched: int
    """Bytes of it that could be read; 0 for clone, and if it was too short or unreadable."""
    parent_tid: Optional[int]
    """The number that CLONE_PARENT_SETTID wrote; None without that flag, or if unreadable."""
    pidfd: Optional[int]
    """The number that CLONE_PIDFD wrote; None without that flag, or if unreadable."""


class Returned(NamedTuple):
    """A call returned."""

    at: int
    tid: int
    tgid: int
    name: str
    arguments: tuple[int, ...]
    """Always six, however many the call takes."""
    returned: int
    entered_at: int
    """0 if it was not recorded."""
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
    """Without the NUL; None if it could not be read."""
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
    """Address at which argv became unreadable; None if all of it was readable."""
    envp: int
    variables: int
    """Variables in envp; negative if none could be read."""
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
    """A task has exited."""

    at: int
    tid: int
    tgid: int
    code: int
    """As wait(2) encodes it."""
    lost: int


class Stacked(NamedTuple):
    """The stack of the call of the same task and time, which directly precedes it."""

    at: int
    tid: int
    stack: Stack


Event = Union[Returned, Leaves, Executes, Executed, Ended, Stacked]


class Timed(Protocol):
    """An event of a task."""

    @property
    def at(self) -> int:
        """ns of CLOCK_MONOTONIC."""

    @property
    def tid(self) -> int:
        """Tid of the task."""


T = TypeVar("T", bound=Timed)

WINDOW = 20_000_000
"""ns by which an event may arrive late and still be sorted correctly."""

_by_time = attrgetter("at", "tid")


class Ordered(Generic[T]):
    """Sorts nearly sorted events; those of one task keep their order, so a stack follows its call."""

    def __init__(self) -> None:
        self._waiting: list[T] = []

    def add(self, events: Iterable[T]) -> None:
        """Add events in the order in which they arrived."""
        self._waiting.extend(events)

    def take(self, until: int) -> list[T]:
        """Remove and return all events up to this time, in order."""
        self._waiting.sort(key=_by_time)  # stable
        ready = 0
        while ready < len(self._waiting) and self._waiting[ready].at <= until:
            ready += 1
        taken, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return taken
