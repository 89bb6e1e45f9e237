# SPDX-License-Identifier: Apache-2.0
"""Who mapped a stack: the C library for a thread, or the application itself."""

from __future__ import annotations

import posixpath
from enum import Enum
from itertools import islice
from typing import Optional

from ebpftrace.callflags import MAP_STACK, PRIVATE_ANONYMOUS, has_all
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.ledger.owners import UNKNOWN_TGID
from ebpftrace.model import Books, BooksState, Frame, Outstanding, OwnedBy, Stack, StackSource
from ebpftrace.vmas import Vmas
from ebpftrace.wrappers import MALLOC_NAMES, MMAP_NAMES, THREAD_MAKERS, plain, users_frame

_DEPTH_IN_LIBC = 3
"""glibc: mmap <- allocate_stack (often inlined) <- pthread_create (nptl/allocatestack.c)."""
_AT_ONCE = NS
"""Who maps a stack for one thread starts that thread sooner."""

_LEAST_DESCRIPTOR = 128
"""Less than any ``struct pthread``: about 200 bytes in musl, 2304 in glibc, both on x86-64."""

_ALLOCATOR_LIBRARIES = (
    "libjemalloc",
    "libtcmalloc",
    "libmimalloc",
    "libjvm",
    "libgc",
    "libmonosgen",
    "libcoreclr",
)
_ALLOCATOR_FUNCTIONS = (
    *("je_", "_rjem_", "jemalloc", "tcmalloc::", "_mi_", "unix_mmap", "scudo::", "runtime.", "GC_"),
    *("os_pages_", "x_cgo_", "v8::", "caml_", "mono_"),
)


class Libc(Enum):
    """Whose threads the target has."""

    GLIBC = "glibc"
    MUSL = "musl"
    UNKNOWN = "unknown"


class Origin(Enum):
    """Who mapped a stack."""

    LIBC = "libc"
    APPLICATION = "application"
    UNKNOWN = "unknown"


def libc_of(books: Books) -> Libc:
    """The C library the target's threads belong to; UNKNOWN also for Go and other runtimes without one."""
    name = books.libc.lower()
    if books.state is not BooksState.ABSENT or "glibc" in name:
        return Libc.GLIBC
    return Libc.MUSL if "musl" in name else Libc.UNKNOWN


def foreign(outstanding: Outstanding, tgid: int) -> bool:
    """Whether the owner is known to be a task of another thread group than ``tgid``: no pthread of it."""
    return outstanding.owner is not None and outstanding.owner.tgid not in (tgid, UNKNOWN_TGID)


def raw_clone(outstanding: Outstanding, tgid: int) -> bool:
    """Whether the owner can't be a pthread: of another group, or put at the very top of the mapping.

    Every C library keeps its thread descriptor above the stack, in the same mapping.
    """
    if foreign(outstanding, tgid):
        return True
    run = outstanding.run
    return run is not None and outstanding.mapping.end - (run.stack + run.stack_size) < _LEAST_DESCRIPTOR


def stack_origin(outstanding: Outstanding, stack: Stack, libc: Libc, tgid: int) -> Origin:
    """Who mapped this stack; ``stack`` is that of the mmap call.

    glibc passes MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK, and clone3 gets the lowest byte of the mapping
    (nptl/allocatestack.c, create_thread).
    """
    mapping, run = outstanding.mapping, outstanding.run
    if raw_clone(outstanding, tgid):
        return Origin.APPLICATION
    if mapping.flags is not None:
        wanted = PRIVATE_ANONYMOUS | (MAP_STACK if libc is Libc.GLIBC else 0)
        if not has_all(mapping.flags, wanted):
            return Origin.APPLICATION
        begins = mapping.made.start if mapping.made else mapping.start
        if libc is Libc.GLIBC and run and run.stack_size and run.stack != begins:
            return Origin.APPLICATION
    return _origin_by_frames(stack)


def _origin_by_frames(stack: Stack) -> Origin:
    callers = [frame for frame in stack.frames if frame.function not in MMAP_NAMES][:_DEPTH_IN_LIBC]
    if any(plain(frame).startswith(THREAD_MAKERS) for frame in callers):
        return Origin.LIBC
    # A walk by frame pointers often misses the direct caller of mmap, so it can't show who that is not.
    exact = stack.source in (StackSource.COPIED, StackSource.SIGNATURE)
    return Origin.APPLICATION if exact and callers and callers[0].function else Origin.UNKNOWN


def fills_mapping(outstanding: Outstanding) -> bool:
    """Whether the owner's stack takes most of the mapping, rather than a part of a pool or a heap."""
    run, mapping = outstanding.run, outstanding.mapping
    if run is None:
        return outstanding.owned_by is OwnedBy.RUNS_ON_IT
    span = mapping.end - mapping.start
    if run.stack_size:
        return 2 * (min(run.stack + run.stack_size, mapping.end) - max(run.stack, mapping.start)) >= span
    return 2 * (mapping.end - run.stack) <= span


def used_late(outstanding: Outstanding) -> bool:
    """Whether the owner's life began long after the mapping was made: the stack had served before."""
    run, made_at = outstanding.run, outstanding.mapping.made_at
    return run is not None and (made_at is None or run.thread.born - made_at > _AT_ONCE)


def creator_frame(stack: Stack) -> Optional[Frame]:
    """The frame to be named as the creator: the user's own, perhaps by module and offset alone; else None."""
    return users_frame(stack.frames)


def mmap_caller(stack: Stack) -> Optional[Frame]:
    """The frame that called mmap; None where it has no name, or the walk may have passed over it."""
    if stack.source not in (StackSource.COPIED, StackSource.SIGNATURE):
        return None
    caller = next((frame for frame in stack.frames if frame.function not in MMAP_NAMES), None)
    return caller if caller is not None and caller.function else None


def by_malloc(stack: Stack) -> bool:
    """Whether malloc mapped it for one block, as glibc does from M_MMAP_THRESHOLD on (mallopt(3))."""
    callers = (frame for frame in stack.frames if frame.function not in MMAP_NAMES)
    return any(plain(frame) in MALLOC_NAMES for frame in islice(callers, _DEPTH_IN_LIBC))


def allocator_of(stack: Stack) -> Optional[str]:
    """The allocator or runtime that called mmap, where its name tells; None for glibc's own malloc.

    What such an allocator maps serves the whole process, whichever thread happened to ask.
    """
    for frame in stack.frames:
        if frame.function in MMAP_NAMES or (frame.function is None and is_libc(frame.module)):
            continue
        library = _allocator_library(frame.module)
        if library:
            return library
        if frame.function and frame.function.startswith(_ALLOCATOR_FUNCTIONS):
            return frame.function
        return None
    return None


def is_libc(module: Optional[str]) -> bool:
    """Whether a module is the C library, by its file name."""
    return module is not None and posixpath.basename(module).startswith(("libc.", "libc-", "ld-musl"))


def loaded_allocator(vmas: Vmas) -> Optional[str]:
    """The first allocator or runtime library mapped into the target, by its file name."""
    return next(filter(None, map(_allocator_library, {kind.path: None for kind in vmas.kinds})), None)


def _allocator_library(module: Optional[str]) -> Optional[str]:
    name = posixpath.basename(module or "")
    return name if name.startswith(_ALLOCATOR_LIBRARIES) else None
