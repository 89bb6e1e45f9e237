# SPDX-License-Identifier: Apache-2.0
"""What mapped a stack: the C library for a thread, or the application itself."""

from __future__ import annotations

import posixpath
from enum import Enum
from itertools import islice
from typing import Optional

from ebpftrace.callflags import MAP_STACK, PRIVATE_ANONYMOUS, has_all
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.ledger.owners import UNKNOWN_TGID
from ebpftrace.model import Frame, Outstanding, OwnedBy, ReadState, Stack, StackSource, ThreadLists
from ebpftrace.vmas import Vmas
from ebpftrace.wrappers import MALLOC_NAMES, MMAP_NAMES, THREAD_MAKERS, plain, users_frame

_DEPTH_IN_LIBC = 3
"""glibc: mmap <- allocate_stack (often inlined) <- pthread_create (nptl/allocatestack.c)."""
_AT_ONCE = NS
"""ns; a program that maps a stack for one thread starts that thread sooner than this."""

_MIN_DESCRIPTOR = 128
"""Bytes; every ``struct pthread`` is larger: about 200 bytes in musl, 2304 in glibc, both on x86-64."""

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
    """The C library that made the target's threads."""

    GLIBC = "glibc"
    MUSL = "musl"
    UNKNOWN = "unknown"


class Origin(Enum):
    """What mapped a stack."""

    LIBC = "libc"
    APPLICATION = "application"
    UNKNOWN = "unknown"


def libc_of(thread_lists: ThreadLists) -> Libc:
    """The C library the target's threads belong to; UNKNOWN also for Go and other runtimes without one."""
    name = thread_lists.libc.lower()
    if thread_lists.state is not ReadState.ABSENT or "glibc" in name:
        return Libc.GLIBC
    return Libc.MUSL if "musl" in name else Libc.UNKNOWN


def foreign(outstanding: Outstanding, tgid: int) -> bool:
    """Whether the owner is known to belong to a thread group other than ``tgid``, so it is no pthread."""
    return outstanding.owner is not None and outstanding.owner.tgid not in (tgid, UNKNOWN_TGID)


def raw_clone(outstanding: Outstanding, tgid: int) -> bool:
    """Whether the owner can't be a pthread: it is in another thread group, or starts at the mapping's top.

    Every C library keeps its thread descriptor above the stack, in the same mapping.
    """
    if foreign(outstanding, tgid):
        return True
    run = outstanding.run
    return run is not None and outstanding.mapping.end - (run.stack + run.stack_size) < _MIN_DESCRIPTOR


def stack_origin(outstanding: Outstanding, stack: Stack, libc: Libc, tgid: int) -> Origin:
    """What mapped this stack; ``stack`` is the call stack of the mmap call.

    glibc passes MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK to mmap, and the lowest byte of the mapping to clone3
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
    # A walk by frame pointers often misses the direct caller of mmap, so that it proves nothing.
    exact = stack.source in (StackSource.COPIED, StackSource.SIGNATURE)
    return Origin.APPLICATION if exact and callers and callers[0].function else Origin.UNKNOWN


def fills_mapping(outstanding: Outstanding) -> bool:
    """Whether the owner's stack takes most of the mapping; else this is a pool of stacks or a heap."""
    run, mapping = outstanding.run, outstanding.mapping
    if run is None:
        return outstanding.owned_by is OwnedBy.RUNS_ON_IT
    span = mapping.end - mapping.start
    if run.stack_size:
        return 2 * (min(run.stack + run.stack_size, mapping.end) - max(run.stack, mapping.start)) >= span
    return 2 * (mapping.end - run.stack) <= span


def used_late(outstanding: Outstanding) -> bool:
    """Whether the owner was created long after the mapping was made, so that the stack was reused."""
    run, made_at = outstanding.run, outstanding.mapping.made_at
    return run is not None and (made_at is None or run.thread.started_at - made_at > _AT_ONCE)


def creator_frame(stack: Stack) -> Optional[Frame]:
    """The frame to be named as the creator: the first of the user's own code; None if there is none."""
    return users_frame(stack.frames)


def mmap_caller(stack: Stack) -> Optional[Frame]:
    """The frame that called mmap; None if it has no name, or the unwinder may have missed it."""
    if stack.source not in (StackSource.COPIED, StackSource.SIGNATURE):
        return None
    caller = next((frame for frame in stack.frames if frame.function not in MMAP_NAMES), None)
    return caller if caller is not None and caller.function else None


def by_malloc(stack: Stack) -> bool:
    """Whether malloc mapped one large block, as glibc does from M_MMAP_THRESHOLD on (mallopt(3))."""
    callers = (frame for frame in stack.frames if frame.function not in MMAP_NAMES)
    return any(plain(frame) in MALLOC_NAMES for frame in islice(callers, _DEPTH_IN_LIBC))


def allocator_of(stack: Stack) -> Optional[str]:
    """The allocator or runtime that called mmap, if its name shows it; None for glibc's own malloc.

    The memory that such an allocator maps serves the whole process, whichever thread made it call mmap.
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
