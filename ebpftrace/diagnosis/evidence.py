# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis is made from, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Callable, Optional

from ebpftrace.diagnosis.history import History
from ebpftrace.model import (
    NO_STACK,
    NOT_SEARCHED,
    Books,
    Finding,
    Frame,
    Interval,
    Outstanding,
    Search,
    Stack,
    Suspect,
    Thread,
)
from ebpftrace.vmas import Vmas

NS = 1_000_000_000
DEFAULT_MIN_AGE = NS


def no_stack_of(_site: int) -> Stack:
    """The ``stack_of`` of a caller that has no stacks."""
    return NO_STACK


def no_name_of(_address: int) -> Optional[Frame]:
    """The ``name_of`` of a caller that has no names."""
    return None


def no_search(_suspects: Sequence[Suspect]) -> Search:
    """The ``search`` of a caller that can't or must not search the memory of the target."""
    return NOT_SEARCHED


@dataclass(frozen=True)
class Evidence:
    """All that the rules may look at.  Times are ns of CLOCK_MONOTONIC, sizes bytes."""

    outstanding: Sequence[Outstanding]
    """What is still mapped (checked against /proc), with live owners too; no two overlap."""
    books: Books
    """glibc's books, read at report time; of a target that is gone, the last that were read."""
    vmas: Vmas
    """/proc/PID/smaps at report time; without ``rss`` where only maps could be read."""
    tgid: int
    """The traced process: a task of another thread group is no pthread of it."""
    attached_at: int
    report_at: int
    min_age: int = DEFAULT_MIN_AGE
    """An owner that exited more recently than this may still be joined."""
    cores: int = 1
    arena_limit: Optional[int] = None
    """MALLOC_ARENA_MAX of the target (mallopt(3), M_ARENA_MAX); None where it has none."""
    stack_of: Callable[[int], Stack] = no_stack_of
    """Site -> stack; NO_STACK for site 0 and for unknown ones."""
    name_of: Callable[[int], Optional[Frame]] = no_name_of
    """Address of a start routine -> its frame."""
    live_stack_pointers: Mapping[int, int] = field(default_factory=dict)
    """Tid -> stack pointer of live tasks, as far as /proc/PID/task/TID/syscall gave them."""
    stack_shaped: Sequence[Interval] = ()
    """Areas that are shaped like stacks and that no thread runs on, where no lists say whose they are."""
    threads: Sequence[Thread] = ()
    """Threads that the trace knows; rules look for those from before attach that exited in the window."""
    earlier_books: Optional[Books] = None
    """The books at attach, or at least ``min_age`` before ``books``: shows who had exited by then."""
    target_exited_at: Optional[int] = None
    """When the target began to exit; threads that ended with it left nothing behind."""
    books_read_at: Optional[int] = None
    """When the books were read, where that was before the target's end; None: at the report."""
    books_final: bool = False
    """The books are those of the moment at which the target died: who is on them will not be joined."""
    awaited: Sequence[int] = ()
    """Addresses of futexes that threads slept at when the target died: some of them joined another one."""
    history: History = field(default_factory=History)
    """All readings of the books, those of the window and the last one included."""
    search: Callable[[Sequence[Suspect]], Search] = no_search
    """Searches the target for what still refers to these; it takes its time, and is called once."""
    virt_growth: Optional[int] = None
    """What VIRT grew by over the window, negative where it shrank; None where that is not known."""
    thread_growth: Optional[int] = None
    """Live threads at the report less those at attach; None where that is not known."""
    thread_waits: Mapping[int, str] = field(default_factory=dict)
    """Tid -> name of the system call that a live thread sleeps in."""

    @cached_property
    def judged_at(self) -> int:
        """The moment that ages are counted from."""
        return self.report_at if self.target_exited_at is None else min(self.report_at, self.target_exited_at)


@dataclass(frozen=True)
class Diagnosis:
    """Findings, leaks first and then by bytes; notes say what could not be proved, and why."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    undecided: int = 0
    """Mappings of exited threads of which it can't be told whether they are leaked."""
    search: Search = NOT_SEARCHED
