# SPDX-License-Identifier: Apache-2.0
"""Which parts of an address space can contain a pointer that counts, and which can't."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebpftrace.model import Interval, ThreadLists, Vma
from ebpftrace.search.runs import Addresses, Runs, merged, no_runs, runs_of
from ebpftrace.vmas import HEAP, KERNELS_OWN, MEMORY_FILES, RINGS, STACK, Vmas

RED_ZONE = 128
"""Bytes below the stack pointer that are in use (System V ABI, x86-64 supplement, 3.2.2)."""


class Areas(NamedTuple):
    """The memory to be searched, by the condition for its pages."""

    private: Runs
    """Private mappings; only pages that are not of a file are searched, since the others were not written."""
    shared: Runs
    """Shared mappings; only pages of a file are searched, since the others are a device's."""
    rings: Runs
    """Rings of the kernel; all present pages are searched."""
    informative: Runs
    """The part that is searched first, because its holders have names: data of programs, and stacks."""


def areas_of(vmas: Vmas, stacks: Iterable[Interval]) -> Areas:
    """The areas of an address space with these mappings and stacks of live threads."""
    roles: dict[int, int] = {}
    chosen = np.fromiter((_role_of(kind, roles) for kind in vmas.kinds), np.int8, len(vmas.kinds))
    starts, ends = np.array(vmas.starts, np.uint64), np.array(vmas.ends, np.uint64)
    private, shared, rings = (_part(starts, ends, chosen == role) for role in (_PRIVATE, _SHARED, _RING))
    return Areas(private, shared, rings, runs_of([*_informative(vmas), *stacks]))


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


def _informative(vmas: Vmas) -> Iterable[tuple[int, int]]:
    """Data of loaded files with the zeroed memory after it, the heap, and the initial stack."""
    file_end = 0
    for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        is_file = bool(kind.inode)
        if kind.perms.endswith("p") and (
            is_file or kind.path in (STACK, HEAP) or (start == file_end and not kind.path)
        ):
            yield start, end
        file_end = end if is_file else 0


def dead_stacks(thread_lists: ThreadLists, in_use: Addresses) -> Runs:
    """Stacks of exited threads and of glibc's cache, whose contents no thread will read.

    Stacks that contain one of the addresses ``in_use`` (stack pointers and thread pointers of live threads)
    are left out, because another thread uses them by now.
    """
    stacks = [thread.stack for thread in thread_lists.threads if thread.exited and thread.stack is not None]
    stacks += thread_lists.stack_cache
    if not stacks:
        return no_runs()
    bounds = np.array(stacks, np.uint64)
    first, after = np.searchsorted(np.sort(in_use), bounds.ravel()).reshape(-1, 2).T
    free = bounds[first == after]
    return merged(free[:, 0], free[:, 1]) if len(free) else no_runs()


def live_stacks(thread_lists: ThreadLists, vmas: Vmas) -> list[Interval]:
    """Stacks of live threads whose bounds are known: those on glibc's lists, and the initial one."""
    stacks = [
        thread.stack for thread in thread_lists.threads if not thread.exited and thread.stack is not None
    ]
    for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds):
        if kind.path == STACK:
            stacks.append(Interval(start, end))
    return sorted(stacks)


def unused_parts(stacks: Sequence[Interval], pointers: Addresses, red_zone: int = RED_ZONE) -> Runs:
    """The parts of the stacks below the stack pointers in them.

    A stack without a pointer in it is used as a whole: its thread is running, or is on another stack (for a
    signal or a coroutine).  If two threads seem to run on one stack, the lower pointer counts.
    """
    if not stacks or not len(pointers):
        return no_runs()
    bounds, known = np.array(stacks, np.uint64), np.sort(pointers)
    lowest = known[np.minimum(np.searchsorted(known, bounds[:, 0]), len(known) - 1)]
    ends = np.maximum(lowest, np.uint64(red_zone)) - np.uint64(red_zone)
    used = (bounds[:, 0] < ends) & (lowest < bounds[:, 1])
    return merged(bounds[used, 0], ends[used]) if used.any() else no_runs()
