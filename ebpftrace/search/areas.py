# SPDX-License-Identifier: Apache-2.0
"""Which parts of an address space can hold a pointer that counts, and which can't."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebpftrace.model import Books, Interval, Vma
from ebpftrace.search.kinds import KERNELS_OWN, MEMORY_FILES, RINGS, STACK
from ebpftrace.search.runs import Addresses, Runs, merged, no_runs, runs_of
from ebpftrace.vmas import HEAP, Vmas

RED_ZONE = 128
"""Bytes below the stack pointer that are in use (System V ABI, x86-64 supplement, 3.2.2)."""


class Areas(NamedTuple):
    """Where memory is searched, by the test that its pages have to pass."""

    private: Runs
    """Pages of private mappings count when they are no page of a file: nothing at run time wrote those."""
    shared: Runs
    """Pages of shared mappings count when they belong to a file: others are a device's, not to be read."""
    rings: Runs
    """All present pages count."""
    telling: Runs
    """What of it is searched first, since it names what it holds: data of programs, stacks."""


def areas_of(vmas: Vmas, stacks: Iterable[Interval]) -> Areas:
    """The areas of an address space with these mappings and stacks of live threads."""
    roles: dict[int, int] = {}
    chosen = np.fromiter((_role_of(kind, roles) for kind in vmas.kinds), np.int8, len(vmas.kinds))
    starts, ends = np.array(vmas.starts, np.uint64), np.array(vmas.ends, np.uint64)
    private, shared, rings = (_part(starts, ends, chosen == role) for role in (_PRIVATE, _SHARED, _RING))
    return Areas(private, shared, rings, runs_of([*_telling(vmas), *stacks]))


_NONE, _PRIVATE, _SHARED, _RING = range(4)


def _role_of(kind: Vma, roles: dict[int, int]) -> int:
    role = roles.get(id(kind))
    if role is None:
        role = roles[id(kind)] = _role(kind)
    return role


def _role(kind: Vma) -> int:
    path = kind.path
    if path.startswith(RINGS):
        return _RING
    is_memory = path.startswith(MEMORY_FILES)
    if path.startswith(KERNELS_OWN) or (path.startswith("/dev/") and not is_memory):
        return _NONE
    if kind.perms.endswith("p"):
        return _PRIVATE
    return _SHARED if is_memory or "w" in kind.perms else _NONE


def _part(starts: Addresses, ends: Addresses, which: NDArray[np.bool_]) -> Runs:
    return merged(starts[which], ends[which]) if which.any() else no_runs()


def _telling(vmas: Vmas) -> Iterable[tuple[int, int]]:
    """Data of loaded files with the zeroed memory behind it, the heap, the initial stack."""
    file_end = 0
    for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        is_file = bool(kind.inode)
        if kind.perms.endswith("p") and (
            is_file or kind.path in (STACK, HEAP) or (start == file_end and not kind.path)
        ):
            yield start, end
        file_end = end if is_file else 0


def dead_stacks(books: Books, in_use: Addresses) -> Runs:
    """Stacks of exited threads and of glibc's cache: what they hold nobody will read.

    Not those that one of the addresses ``in_use`` (stack pointers, thread pointers of live threads) lies in:
    they serve another thread by now.
    """
    stacks = [thread.stack for thread in books.threads if thread.exited and thread.stack is not None]
    stacks += books.stack_cache
    if not stacks:
        return no_runs()
    bounds = np.array(stacks, np.uint64)
    first, after = np.searchsorted(np.sort(in_use), bounds.ravel()).reshape(-1, 2).T
    free = bounds[first == after]
    return merged(free[:, 0], free[:, 1]) if len(free) else no_runs()


def live_stacks(books: Books, vmas: Vmas) -> list[Interval]:
    """Stacks of live threads whose bounds are known: glibc's, and the initial one."""
    stacks = [thread.stack for thread in books.threads if not thread.exited and thread.stack is not None]
    for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        if kind.path == STACK:
            stacks.append(Interval(start, end))
    return sorted(stacks)


def unused_parts(stacks: Sequence[Interval], pointers: Addresses, red_zone: int = RED_ZONE) -> Runs:
    """What of the stacks lies below the stack pointers in them.

    A stack without a pointer in it counts whole: its thread is on another one (a signal's, a coroutine's), or
    runs.  One in which two threads seem to run counts down to the lower pointer.
    """
    if not stacks or not len(pointers):
        return no_runs()
    bounds, known = np.array(stacks, np.uint64), np.sort(pointers)
    lowest = known[np.minimum(np.searchsorted(known, bounds[:, 0]), len(known) - 1)]
    ends = np.maximum(lowest, np.uint64(red_zone)) - np.uint64(red_zone)
    used = (bounds[:, 0] < ends) & (lowest < bounds[:, 1])
    return merged(bounds[used, 0], ends[used]) if used.any() else no_runs()
