# SPDX-License-Identifier: Apache-2.0
"""One thread descriptor (glibc ``struct pthread``), and what it proves about its thread.

These are the states of a descriptor, and what its fields contain in each (glibc ``nptl/allocatestack.c``,
``pthread_create.c``, ``nptl_free_tcb.c``, ``nptl-stack.c``; 2.28 to 2.43 agree):

* being created: ``setxid_futex`` is -1 *before* the descriptor is put on a list of stacks in use; ``tid``
  and, a moment later, ``cancelhandling`` are 0.  A stack from the cache has TERMINATED set until then.
* running: the kernel has set ``tid``; the thread itself has set ``setxid_futex`` to 0.
* ending (return, pthread_exit, cancellation): EXITING is set in ``cancelhandling``, still running.  A
  detached thread then sets TERMINATED and removes itself from the list before it stops running.
* exited: the kernel clears the word that was passed to clone as ``child_tid``: ``tid`` up to 2.42,
  ``joinstate`` since 2.43 (BZ 19951), where the thread clears ``tid`` itself shortly before.
* joined: ``tid`` is set to -1 (up to 2.42), TERMINATED is set, then the descriptor leaves the list.

So a descriptor that the kernel has cleared, that was started and is not TERMINATED belongs to a thread that
has exited and has not been joined yet; no other state has this combination.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.nptl.lists import Lists

_EXITING = 1 << 4
_TERMINATED = 1 << 5
_JOINSTATE_SINCE = (2, 43)
_JOINSTATE_EXITED = 0
_JOINSTATE_DETACHED = 3
_SETXID_BEHIND_CLOCK = ((2, 31), (2, 36))
"""Versions from the first up to, but not including, the second have ``cpuclock_offset`` in between
``setxid_futex`` and ``joinid``."""


class Descriptor(NamedTuple):
    """The fields of one ``struct pthread`` as they were read, in the order of their offsets."""

    address: int
    next: int
    """Address of a ``list_t``, not of a descriptor; so is ``prev``."""
    prev: int
    tid: int
    cancelhandling: int
    setxid: int
    join: int
    """``joinid``; since 2.43 ``joinstate``, which is the half that comes first in memory."""
    start_routine: int
    block: int
    """``stackblock``: lowest byte of the stack with its guard; 0 if the field was not found."""
    block_size: int

    @property
    def main(self) -> bool:
        """Whether it is the initial thread's, the only one that was started without a routine."""
        return not self.start_routine

    @property
    def deciding(self) -> tuple[int, ...]:
        """The fields that the state depends on: from ``tid`` to ``join``."""
        return self[3:7]

    @property
    def fields(self) -> tuple[int, ...]:
        """All fields but the address and the links, which change as neighbours come and go."""
        return self[3:]


_new: Callable[[type[Descriptor], tuple[int, ...]], Descriptor] = tuple.__new__
"""``Descriptor._make`` without the check of the length, which takes as long as the rest."""


class ThreadState(Enum):
    """The state of a thread by its descriptor and the list of live tasks."""

    __hash__ = object.__hash__  # as for ``OwnedBy``

    ALIVE = "alive"
    BEING_CREATED = "being created"
    EXITED = "exited"
    JOINED = "joined"
    """It exited and was joined or detached, so it is about to leave the list."""
    UNKNOWN = "unknown"
    """It neither lives nor is marked as exited; this happens after a fork without glibc's wrapper."""


def join_offset(lists: Lists) -> int:
    """Offset of ``joinid`` (``joinstate``), which with ``result`` precedes ``schedparam`` (nptl/descr.h)."""
    return lists.layout.sched_priority - 16


def setxid_offset(lists: Lists) -> int:
    """Offset of ``setxid_futex``."""
    since, before = _SETXID_BEHIND_CLOCK
    return join_offset(lists) - (12 if since <= lists.version < before else 4)


class Format:
    """Unpacks descriptors of one process, from one read each."""

    def __init__(self, lists: Lists, block_offset: Optional[int]) -> None:
        layout = lists.layout
        self.lists = lists
        self._link = layout.link
        join = join_offset(lists)
        since, _ = _SETXID_BEHIND_CLOCK
        self._knows_setxid = lists.version >= since
        fields = [
            (layout.link, "Q"),
            (layout.link + 8, "Q"),
            (layout.tid, "i"),
            (layout.cancelhandling, "i"),
            (setxid_offset(lists), "I"),
            (join, "Q"),
            (layout.start_routine, "Q"),
        ]
        if block_offset is not None:
            fields += [(block_offset, "Q"), (block_offset + 8, "Q")]
        self._has_block = block_offset is not None
        self._fields = len(fields) + 1
        self._backward = layout.next == 8
        text, at = lists.order, layout.link
        for offset, code in fields:
            text += f"{offset - at}x{code}"
            at = offset + struct.calcsize("=" + code)
        self._struct = struct.Struct(text)
        self.size = self._struct.size
        """Bytes to read, beginning at the ``list_t``."""

    def unpack(self, node: int, raw: bytes) -> Optional[Descriptor]:
        """Unpack the descriptor whose ``list_t`` is at ``node``; None if it is outside the stack it names."""
        address = node - self._link
        values = (address, *self._struct.unpack(raw))
        if not self._has_block:
            values += (0, 0)
        if self._backward:
            values = (address, values[2], values[1], *values[3:])
        block = values[8]
        if block and values[7] and not block <= address < block + values[9]:
            return None
        return _new(Descriptor, values)

    def unchanged(self, descriptor: Descriptor, raw: bytes) -> bool:
        """Whether the fields are the same as before, apart from the links, since neighbours come and go."""
        return self._struct.unpack(raw)[2:] == descriptor[3 : self._fields]

    def _joinstate(self, descriptor: Descriptor) -> Optional[int]:
        if self.lists.version < _JOINSTATE_SINCE:
            return None
        return descriptor.join & 0xFFFFFFFF if self.lists.order == "<" else descriptor.join >> 32

    def state(self, descriptor: Descriptor, live: Collection[int]) -> ThreadState:
        """The state of a descriptor's thread; ``live`` are tids of the target's own PID namespace."""
        joinstate = self._joinstate(descriptor)
        if descriptor.tid in live:
            return ThreadState.ALIVE
        if descriptor.cancelhandling & _TERMINATED:
            return ThreadState.JOINED
        if descriptor.tid < 0:
            return ThreadState.JOINED if descriptor.cancelhandling & _EXITING else ThreadState.BEING_CREATED
        cleared = descriptor.tid == 0 if joinstate is None else joinstate == _JOINSTATE_EXITED
        # A thread that ends by a bare exit system call never gets to set EXITING.
        started = bool(descriptor.cancelhandling & _EXITING) or (
            self._knows_setxid and descriptor.setxid == 0
        )
        if cleared and started:
            # A thread that is detached after it exited is freed at once (nptl/pthread_detach.c).  A detached
            # one that never set EXITING ended by a bare exit system call, and is not freed.
            ends_now = self.detached(descriptor) and bool(descriptor.cancelhandling & _EXITING)
            return ThreadState.JOINED if ends_now else ThreadState.EXITED
        return ThreadState.UNKNOWN if descriptor.tid and not cleared else ThreadState.BEING_CREATED

    def detached(self, descriptor: Descriptor) -> bool:
        """Whether the thread needs no join, by ``joinid`` (the descriptor itself) or ``joinstate``.

        glibc does not record which thread waits in pthread_join: 2.28 to 2.42 never write a joiner into
        ``joinid`` (nptl/pthread_join_common.c compares it with the joiner, to set it to NULL), and 2.43 has
        no ``joinid``.
        """
        joinstate = self._joinstate(descriptor)
        return bool(descriptor.join) if joinstate is None else joinstate == _JOINSTATE_DETACHED
