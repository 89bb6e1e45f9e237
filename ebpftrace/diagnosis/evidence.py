# SPDX-License-Identifier: Apache-2.0
"""The input of a diagnosis and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Callable, Optional

from ebpftrace.diagnosis.history import History
from ebpftrace.glibc import ONE_CORE, Cores
from ebpftrace.model import (
    NO_STACK,
    NOT_SEARCHED,
    Finding,
    Frame,
    Interval,
    Outstanding,
    Search,
    Stack,
    Suspect,
    Thread,
    ThreadLists,
)
from ebpftrace.units import NS as NS
from ebpftrace.vmas import Vmas

DEFAULT_MIN_AGE = NS


def no_stack_of(_site: int) -> Stack:
    """For callers that have no stacks: the ``stack_of`` that knows none."""
    return NO_STACK


def no_name_of(_address: int) -> Optional[Frame]:
    """For callers that have no symbols: the ``name_of`` that knows none."""
    return None


def no_search(_suspects: Sequence[Suspect]) -> Search:
    """For callers that can't or must not search the target's memory: the ``search`` that does nothing."""
    return NOT_SEARCHED


@dataclass(frozen=True)
class Evidence:
    """All that the rules may use.  Times are ns of CLOCK_MONOTONIC, sizes are bytes."""

    outstanding: Sequence[Outstanding]
    """What is still mapped (checked against /proc), whether the owner lives or not; no two overlap."""
    thread_lists: ThreadLists
    """glibc's thread lists, read at report time; if the target has exited, the last that were read."""
    vmas: Vmas
    """/proc/PID/smaps at report time; without ``rss`` if only maps could be read."""
    tgid: int
    """The traced process: a task of another thread group is not one of its pthreads."""
    attached_at: int
    report_at: int
    min_age: int = DEFAULT_MIN_AGE
    """An owner that exited more recently than this may still be joined."""
    cores: Cores = ONE_CORE
    arena_limit: Optional[int] = None
    """MALLOC_ARENA_MAX of the target (mallopt(3), M_ARENA_MAX); None if it is not set."""
    stack_of: Callable[[int], Stack] = no_stack_of
    """Site number -> stack; NO_STACK for 0 and for unknown ones."""
    name_of: Callable[[int], Optional[Frame]] = no_name_of
    """Address of a start routine -> its frame."""
    live_stack_pointers: Mapping[int, int] = field(default_factory=dict)
    """Tid -> stack pointer of live tasks, as far as /proc/PID/task/TID/syscall shows them."""
    stack_shaped: Sequence[Interval] = ()
    """Areas that are shaped like stacks and that no thread runs on, if no lists say whose they are."""
    threads: Sequence[Thread] = ()
    """Threads that the trace knows; those from before attach that exited in the window are used."""
    earlier_lists: Optional[ThreadLists] = None
    """The lists at attach, or ``min_age`` before ``thread_lists``: they show which threads had exited."""
    target_exited_at: Optional[int] = None
    """When the target began to exit; threads that ended with it left nothing behind."""
    lists_read_at: Optional[int] = None
    """When the thread lists were read, if that was before the target's end; None if at the report."""
    lists_final: bool = False
    """The thread lists were read when the target died: the threads on them can't be joined any more."""
    awaited: Sequence[int] = ()
    """Addresses of the futexes that threads slept at when the target died, some of them in pthread_join."""
    history: History = field(default_factory=History)
    """All readings of the thread lists, including the last one."""
    search: Callable[[Sequence[Suspect]], Search] = no_search
    """Searches the target's memory for references to the suspects; called once, because it takes long."""
    virt_growth: Optional[int] = None
    """Bytes that VIRT grew by over the window, negative if it shrank; None if unknown."""
    thread_growth: Optional[int] = None
    """Live threads at the report less those at attach; None if unknown."""
    thread_waits: Mapping[int, str] = field(default_factory=dict)
    """Tid -> name of the system call that a live thread sleeps in."""

    @cached_property
    def judged_at(self) -> int:
        """The moment of judgement, to which ages are counted: the report, or the end of the target."""
        return self.report_at if self.target_exited_at is None else min(self.report_at, self.target_exited_at)


@dataclass(frozen=True)
class Diagnosis:
    """Findings, leaks first and then by bytes; notes say what could not be proved, and why."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    undecided: int = 0
    """Number of mappings of exited threads that may or may not be leaked."""
    search: Search = NOT_SEARCHED
