# SPDX-License-Identifier: Apache-2.0
"""What /proc and the memory of a target say at one moment: all that a report needs of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

from ebpftrace.model import Books, BooksState
from ebpftrace.process.books import read_books
from ebpftrace.process.maps import read_maps, read_smaps
from ebpftrace.process.memory import Memory
from ebpftrace.process.sharing import same_address_space
from ebpftrace.process.sleepers import Sleeper, read_sleepers
from ebpftrace.process.status import MemoryUse, read_memory_use
from ebpftrace.vmas import Vmas

GONE = Books(BooksState.ABSENT, why="the target has exited")


class Now(NamedTuple):
    """One moment of a process."""

    read_at: int
    """ns of CLOCK_MONOTONIC, before the first reading."""
    vmas: Vmas
    books: Books
    memory: Optional[MemoryUse]
    """None of a process that is gone."""
    sleepers: dict[int, Sleeper]
    """By tid; see ``read_sleepers``."""
    groups: Sequence[int] = ()
    """The thread groups in the address space, that of the process first."""
    read_until: Optional[int] = None
    """ns of CLOCK_MONOTONIC, after the books were read."""
    books_read_at: Optional[int] = None
    """When the books were read, where that was before the process was gone; else with the rest."""


def read_now(pid: int) -> Now:
    """Read what is so now.  Raises ProcessGone, CannotTrace."""
    return _read(pid, read_smaps, read_sleepers)


def read_lists(pid: int) -> Now:
    """Like ``read_now``, but quick: no resident sizes, no stack pointers."""
    return _read(pid, read_maps, lambda _: {})


def _read(
    pid: int,
    read_vmas: Callable[[int], Vmas],
    read_threads: Callable[[Sequence[int]], dict[int, Sleeper]],
) -> Now:
    read_at = time.monotonic_ns()
    vmas = read_vmas(pid)
    groups = same_address_space(pid).tgids
    books = _read_books(pid, vmas, groups)
    read_until = time.monotonic_ns()
    return Now(
        read_at=read_at,
        vmas=vmas,
        books=books,
        memory=read_memory_use(pid),
        sleepers=read_threads(groups),
        groups=groups,
        read_until=read_until,
    )


def nothing_now(last: Optional[Now] = None) -> Now:
    """What is left of a process that is gone: what its books said last, if they were read."""
    gone = Now(time.monotonic_ns(), Vmas(), GONE, None, {})
    if last is None:
        return gone
    return gone._replace(books=last.books, books_read_at=last.read_at)


def read_books_of(pid: int, vmas: Vmas) -> Books:
    """Read glibc's books of the address space, whichever thread groups share it.  Raises as ``read_now``."""
    return _read_books(pid, vmas, same_address_space(pid).tgids)


def _read_books(pid: int, vmas: Vmas, groups: Sequence[int]) -> Books:
    with Memory(pid) as memory:
        return read_books(pid, vmas, memory, [tgid for tgid in groups if tgid != pid])
