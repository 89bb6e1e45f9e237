# SPDX-License-Identifier: Apache-2.0
"""Reads glibc's books of one process, from the list heads to ``model.Books``.

In order: find the lists; walk them; ask which threads live; read what seems to have exited once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ebpftrace.model import BookedThread, Books, BooksState
from ebpftrace.process.books.blocks import Mappings, find_block_offset
from ebpftrace.process.books.cache import read_cache, read_limit
from ebpftrace.process.books.descriptors import Fate, Format
from ebpftrace.process.books.judging import judge
from ebpftrace.process.books.lists import Absent, Lists, Readable, find_lists
from ebpftrace.process.books.liveness import live_tids
from ebpftrace.process.books.walk import Walk, Walker
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.vmas import Vmas

_LEAST_ATTEMPTS = 4
_SECONDS_OF_ATTEMPTS = 0.25


def read_books(pid: int, vmas: Vmas, memory: Readable, groups: Sequence[int] = ()) -> Books:
    """What glibc in process ``pid`` says of its thread stacks now.

    ``vmas`` are its mappings, ascending; ``groups`` other thread groups in its address space.  The initial
    thread is left out: its stack is not glibc's.  So are threads that are neither alive nor marked as
    exited; ``why`` counts those, and says what else is incomplete.

    Never raises for what the target holds; ``CannotTrace`` where /proc refuses to be read.
    """
    try:
        lists = find_lists(pid, vmas, memory)
        if isinstance(lists, Absent):
            return Books(BooksState.ABSENT, lists.why, libc=lists.libc)
        return _Reader(pid, lists, memory, groups).read(vmas)
    except ProcessGone:
        return Books(BooksState.UNSTABLE, "the process exited while its thread lists were read")


class _Reader:
    """One reading of the books of one process."""

    def __init__(self, pid: int, lists: Lists, memory: Readable, groups: Sequence[int]) -> None:
        self._pid = pid
        self._lists = lists
        self._memory = memory
        self._groups = groups
        self._form = Format(lists, find_block_offset(lists, memory))
        self._walker = Walker(memory, self._form)

    def read(self, vmas: Vmas) -> Books:
        """The books, joined with the mappings."""
        used, user = self._walk(self._lists.used), self._walk(self._lists.user)
        on_user = {descriptor.address for descriptor in user.descriptors}
        # A forged list may lead into the other one: no thread counts twice.
        listed = {descriptor.address: descriptor for descriptor in used.descriptors + user.descriptors}
        judged = judge(listed.values(), self._walker, self._who_lives)
        stacks = Mappings(vmas).stacks(descriptor for descriptor, _ in judged)
        threads = tuple(
            BookedThread(
                descriptor=descriptor.address,
                tid=max(0, descriptor.tid),
                start_routine=descriptor.start_routine,
                stack=stacks.get(descriptor.address),
                user_stack=descriptor.address in on_user,
                exited=fate is Fate.EXITED,
                detached=self._form.detached(descriptor),
            )
            for descriptor, fate in judged
            if fate in (Fate.ALIVE, Fate.BEING_CREATED, Fate.EXITED)
        )
        cache = read_cache(self._lists, self._memory, self._walker)
        return Books(
            state=BooksState.READ if used.complete else BooksState.UNSTABLE,
            why=_incomplete(used, user, sum(fate is Fate.UNKNOWN for _, fate in judged)),
            threads=threads,
            stack_cache_bytes=cache.size,
            stack_cache_limit=read_limit(self._pid, self._lists, self._memory),
            stack_cache=cache.stacks,
            libc=self._lists.name,
        )

    def _who_lives(self) -> frozenset[int]:
        return live_tids(self._pid, self._groups)

    def _walk(self, head: int) -> Walk:
        """Walk until one walk comes back to the head; of broken walks the longest."""
        until = time.monotonic() + _SECONDS_OF_ATTEMPTS
        best = self._walker.walk(head)
        attempt = 1
        while not best.complete and (attempt < _LEAST_ATTEMPTS or time.monotonic() < until):
            walk = self._walker.walk(head)
            if walk.complete or len(walk.descriptors) > len(best.descriptors):
                best = walk
            attempt += 1
        return best


def _incomplete(used: Walk, user: Walk, unknown: int) -> str:
    reasons = []
    if not used.complete:
        reasons.append("the list of thread stacks changed under every reading, or is broken")
    if not user.complete:
        reasons.append("the list of stacks that the application gave is broken: some may be missing")
    if unknown:
        reasons.append(f"{unknown} listed threads neither live nor are marked as exited")
    return "; ".join(reasons)
