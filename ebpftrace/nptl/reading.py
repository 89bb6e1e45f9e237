# SPDX-License-Identifier: Apache-2.0
"""Reads glibc's thread lists of one process, from the list heads to ``model.ThreadLists``.

The steps are: find the lists, walk them, list the live threads, and read each descriptor whose thread seems
to have exited once more, unless an earlier reading has found the same in it.  A descriptor is copied while
the target runs, so one copy may mix fields of two moments; two equal copies do not.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Callable, Optional

from ebpftrace.glibc import STACK_CACHE_LIMIT
from ebpftrace.model import Interval, ListedThread, ReadState, ThreadLists
from ebpftrace.nptl.blocks import Mappings, find_block_offset
from ebpftrace.nptl.lists import Absent, Lists, find_lists
from ebpftrace.nptl.struct_pthread import Descriptor, Format, ThreadState
from ebpftrace.nptl.walk import Walk, Walker
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.livethreads import live_tids
from ebpftrace.procfs.memory import Readable
from ebpftrace.procfs.tunables import read_environment, tunable
from ebpftrace.vmas import Vmas

_MIN_ATTEMPTS = 4
_ATTEMPT_SECONDS = 0.25
_EXTRA_LISTINGS = 3

_LISTED = (ThreadState.ALIVE, ThreadState.BEING_CREATED, ThreadState.EXITED)
_NONE_KNOWN: Mapping[int, ListedThread] = MappingProxyType({})

_CACHE_TUNABLE = b"glibc.pthread.stack_cache_size"
_CACHE_TUNABLE_SINCE = (2, 34)
_CACHE_ATTEMPTS = 4


def read_thread_lists(
    pid: int,
    vmas: Vmas,
    memory: Readable,
    groups: Sequence[int] = (),
    earlier: Optional[ThreadLists] = None,
    *,
    confirm: bool = True,
) -> ThreadLists:
    """Read what glibc in process ``pid`` has on its lists of thread stacks now.

    ``vmas`` are its mappings, ascending; ``groups`` are other thread groups in its address space.  With
    ``earlier``, a reading of the same address space, many threads take half the time; so they do without
    ``confirm``, for a first reading that proves nothing until a later one has found the same.  The initial
    thread is left out, because glibc did not allocate its stack.  So are threads that neither live nor are
    marked as exited; ``why`` counts them, and names whatever else is incomplete.

    Raises ``CannotTrace`` if /proc can't be read, and nothing whatever the target's memory contains.
    """
    try:
        lists = find_lists(pid, vmas, memory)
        if isinstance(lists, Absent):
            return ThreadLists(ReadState.ABSENT, lists.why, libc=lists.libc)
        return _Reader(pid, lists, memory, groups).read(vmas, earlier, confirm)
    except ProcessGone:
        return ThreadLists(ReadState.UNSTABLE, "the process exited while its thread lists were read")


class _Reader:
    """One reading of the thread lists of one process."""

    def __init__(self, pid: int, lists: Lists, memory: Readable, groups: Sequence[int]) -> None:
        self._pid = pid
        self._lists = lists
        self._memory = memory
        self._groups = groups
        self._form = Format(lists, find_block_offset(lists, memory))
        self._walker = Walker(memory, self._form)

    def read(self, vmas: Vmas, earlier: Optional[ThreadLists], confirm: bool) -> ThreadLists:
        """Read the lists, and find the mapping of each stack."""
        used, user = self._walk(self._lists.used), self._walk(self._lists.user)
        on_user = {descriptor.address for descriptor in user.descriptors}
        # A forged list may lead into the other one: no thread counts twice.
        listed = {descriptor.address: descriptor for descriptor in used.descriptors + user.descriptors}
        known = {thread.descriptor: thread for thread in earlier.threads} if earlier is not None else {}
        classified = classify_threads(listed.values(), self._walker, self._live_tids, known, confirm)
        stacks = Mappings(vmas).stacks(descriptor for descriptor, _ in classified)
        unknown = sum(state is ThreadState.UNKNOWN for _, state in classified)
        threads = []
        for descriptor, state in classified:
            if state in _LISTED:
                address = descriptor.address
                stack, user_stack, exited = (
                    stacks.get(address),
                    address in on_user,
                    state is ThreadState.EXITED,
                )
                before = known.get(address)
                if before is not None and _is_same(before, descriptor, stack, user_stack, exited):
                    threads.append(before)
                else:
                    threads.append(self._listed(descriptor, stack, user_stack, exited))
        cache = read_cache(self._lists, self._memory, self._walker)
        return ThreadLists(
            state=ReadState.READ if used.complete else ReadState.UNSTABLE,
            why=_incomplete(used, user, unknown),
            threads=tuple(threads),
            stack_cache_bytes=cache.size,
            stack_cache_limit=read_limit(self._pid, self._lists, self._memory),
            stack_cache=cache.stacks,
            libc=self._lists.name,
        )

    def _listed(
        self, descriptor: Descriptor, stack: Optional[Interval], user_stack: bool, exited: bool
    ) -> ListedThread:
        # A thread that can still be joined has neither a ``joinid`` nor, once it has exited, a ``joinstate``.
        detached = bool(descriptor.join) and self._form.detached(descriptor)
        return ListedThread(
            descriptor=descriptor.address,
            tid=max(0, descriptor.tid),
            start_routine=descriptor.start_routine,
            stack=stack,
            user_stack=user_stack,
            exited=exited,
            detached=detached,
            fields=descriptor.fields,
        )

    def _live_tids(self) -> frozenset[int]:
        return live_tids(self._pid, self._groups)

    def _walk(self, head: int) -> Walk:
        """Walk until one walk comes back to the head; if none does, return the longest."""
        until = time.monotonic() + _ATTEMPT_SECONDS
        best = self._walker.walk(head)
        attempt = 1
        while not best.complete and (attempt < _MIN_ATTEMPTS or time.monotonic() < until):
            walk = self._walker.walk(head)
            if walk.complete or len(walk.descriptors) > len(best.descriptors):
                best = walk
            attempt += 1
        return best


def _is_same(
    before: ListedThread, now: Descriptor, stack: Optional[Interval], user_stack: bool, exited: bool
) -> bool:
    """Whether a thread is as an earlier reading found it, which takes less than to make it again."""
    return (
        before.fields == now.fields
        and before.stack == stack
        and before.user_stack == user_stack
        and before.exited == exited
    )


def _incomplete(used: Walk, user: Walk, unknown: int) -> str:
    reasons = []
    if not used.complete:
        reasons.append("the list of thread stacks changed under every reading, or is broken")
    if not user.complete:
        reasons.append("the list of stacks that the application gave is broken: some may be missing")
    if unknown:
        reasons.append(f"{unknown} listed threads neither live nor are marked as exited")
    return "; ".join(reasons)


def classify_threads(
    descriptors: Iterable[Descriptor],
    walker: Walker,
    read_live_tids: Callable[[], frozenset[int]],
    known: Mapping[int, ListedThread] = _NONE_KNOWN,
    confirm: bool = True,
) -> list[tuple[Descriptor, ThreadState]]:
    """Find the state of each thread but the initial one, whose stack glibc did not allocate.

    ``read_live_tids`` returns tids of the target's own PID namespace.  It is called after the descriptors
    were read, so that a thread created meanwhile counts as alive.  ``known`` are the threads of an earlier
    reading by their descriptors; ``confirm`` is as for ``read_thread_lists``.
    """
    live = read_live_tids()
    states = _States(walker.form, live)
    classified = [
        _classify(descriptor, walker, states, known) if confirm else (descriptor, states[descriptor.deciding])
        for descriptor in descriptors
        if not descriptor.main
    ]
    for _ in range(_EXTRA_LISTINGS):
        if not any(state is ThreadState.UNKNOWN for _, state in classified):
            break
        # The kernel's list of threads can miss some while others exit (fs/proc/base.c, first_tid).
        live |= read_live_tids()
        states = _States(walker.form, live)
        classified = [
            _classify(descriptor, walker, states, known)
            if state is ThreadState.UNKNOWN
            else (descriptor, state)
            for descriptor, state in classified
        ]
    return classified


class _States(dict[tuple[int, ...], ThreadState]):
    """The states by the fields that decide.  Threads that have exited have the same in them."""

    def __init__(self, form: Format, live: Collection[int]) -> None:
        super().__init__()
        self._form = form
        self._live = live

    def __missing__(self, deciding: tuple[int, ...]) -> ThreadState:
        state = self._form.state(Descriptor._make((0, 0, 0, *deciding, 0, 0, 0)), self._live)
        self[deciding] = state
        return state


def _classify(
    descriptor: Descriptor, walker: Walker, states: _States, known: Mapping[int, ListedThread]
) -> tuple[Descriptor, ThreadState]:
    state = states[descriptor.deciding]
    before = known.get(descriptor.address)
    if (
        state is ThreadState.ALIVE
        or (before is not None and before.fields == descriptor.fields)
        or walker.unchanged(descriptor)
    ):
        return descriptor, state
    return _reread(descriptor, walker, states)


def _reread(descriptor: Descriptor, walker: Walker, states: _States) -> tuple[Descriptor, ThreadState]:
    """Read a descriptor again that changed between two readings."""
    now = walker.read(descriptor.address + walker.link)
    if now is None or now.main:
        return descriptor, ThreadState.JOINED
    state = states[now.deciding]
    if state is ThreadState.EXITED and not walker.unchanged(now):
        return now, ThreadState.JOINED
    if state is ThreadState.UNKNOWN:
        # Its thread was created after the live threads were listed.
        return now, ThreadState.BEING_CREATED
    return now, state


@dataclass(frozen=True)
class StackCache:
    """The cache of stacks at one moment (glibc ``nptl/nptl-stack.c``); sizes are bytes, with guards."""

    size: Optional[int] = None
    stacks: tuple[Interval, ...] = ()


def read_cache(lists: Lists, memory: Readable, walker: Walker) -> StackCache:
    """Read the cached stacks; the result is empty unless glibc's own sum of their sizes agrees.

    The sum also verifies the address of the list, which no ``_thread_db_`` symbol describes.
    """
    if lists.cache is None or lists.cache_size is None:
        return StackCache()
    for _ in range(_CACHE_ATTEMPTS):
        try:
            (size,) = struct.unpack(lists.order + "Q", memory.read(lists.cache_size, 8))
        except OSError:
            break
        walk = walker.walk(lists.cache)
        if walk.complete and size == sum(descriptor.block_size for descriptor in walk.descriptors):
            blocks = (Interval(cached.block, cached.block + cached.block_size) for cached in walk.descriptors)
            return StackCache(size, tuple(sorted(blocks)))
    return StackCache()


def read_limit(pid: int, lists: Lists, memory: Readable) -> int:
    """Read how many bytes the cache may hold.

    The limit is glibc's variable if it has a symbol, else the value in GLIBC_TUNABLES that the process was
    started with, else the default.  Raises ``ProcessGone`` or ``CannotTrace``.
    """
    if lists.cache_limit is not None:
        try:
            (limit,) = struct.unpack(lists.order + "Q", memory.read(lists.cache_limit, 8))
            return int(limit)
        except OSError:
            pass
    if lists.version < _CACHE_TUNABLE_SINCE:
        return STACK_CACHE_LIMIT
    limit = tunable(read_environment(pid), _CACHE_TUNABLE)
    return STACK_CACHE_LIMIT if limit is None else limit
