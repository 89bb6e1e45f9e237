# SPDX-License-Identifier: Apache-2.0
"""One thread descriptor (glibc ``struct pthread``), and what it proves about its thread.

The life of a descriptor, and what can be seen of it from outside at each point (glibc
``nptl/allocatestack.c``, ``pthread_create.c``, ``nptl_free_tcb.c``, ``nptl-stack.c``; 2.28 to 2.43 agree):

* being created: ``setxid_futex`` is -1 *before* the descriptor is put on a list of stacks in use; ``tid``
  and, a moment later, ``cancelhandling`` are 0.  A stack out of the cache has TERMINATED set until then.
* running: the kernel has set ``tid``; the thread itself has set ``setxid_futex`` to 0.
* ending (return, pthread_exit, cancellation): EXITING is set in ``cancelhandling``, still running.  A
  detached thread then sets TERMINATED and takes itself off the list, all before it stops running.
* exited: the kernel clears the word that was given to clone as ``child_tid``: ``tid`` up to 2.42,
  ``joinstate`` since 2.43 (BZ 19951), where the thread clears ``tid`` itself shortly before.
* joined: ``tid`` is set to -1 (up to 2.42), TERMINATED is set, then it leaves the list.

So "cleared by the kernel, started, not TERMINATED" is exactly: exited and nobody has joined it yet.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple, Optional

from ebpftrace.process.books.lists import Lists

_EXITING = 1 << 4
_TERMINATED = 1 << 5
_JOINSTATE_SINCE = (2, 43)
_JOINSTATE_EXITED = 0
_JOINSTATE_DETACHED = 3
_SETXID_BEHIND_CLOCK = ((2, 31), (2, 36))
"""From, before: versions with ``cpuclock_offset`` between ``setxid_futex`` and ``joinid``."""


class Descriptor(NamedTuple):
    """The fields of one ``struct pthread`` as they were read, in the order they lie in."""

    address: int
    next: int
    """Address of a ``list_t``, not of a descriptor; so is ``prev``."""
    prev: int
    tid: int
    cancelhandling: int
    setxid: int
    join: int
    """``joinid``, or since 2.43 ``joinstate`` in the half that comes first in memory."""
    start_routine: int
    block: int
    """``stackblock``: lowest byte of the stack with its guard; 0 where the field was not found."""
    block_size: int

    @property
    def main(self) -> bool:
        """It is the initial thread's: only that one was not started with a routine."""
        return not self.start_routine


class Fate(Enum):
    """What a descriptor and the list of live tasks say together."""

    ALIVE = "alive"
    BEING_CREATED = "being created"
    EXITED = "exited"
    JOINED = "joined"
    """Exited, joined or detached: it is about to leave the list."""
    UNKNOWN = "unknown"
    """Neither alive nor marked as exited: seen after a fork behind glibc's back."""


def join_offset(lists: Lists) -> int:
    """Where ``joinid`` (``joinstate``) is: with ``result`` right before ``schedparam`` (nptl/descr.h)."""
    return lists.layout.sched_priority - 16


def setxid_offset(lists: Lists) -> int:
    """Where ``setxid_futex`` is."""
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
        """Bytes to read, from the ``list_t`` on."""

    def unpack(self, node: int, raw: bytes) -> Optional[Descriptor]:
        """The descriptor whose ``list_t`` is at ``node``; None if it is not on the stack it names."""
        values = self._struct.unpack(raw)
        if not self._has_block:
            values += (0, 0)
        if self._backward:
            values = (values[1], values[0], *values[2:])
        address = node - self._link
        block, start_routine = values[7], values[6]
        if block and start_routine and not block <= address < block + values[8]:
            return None
        return Descriptor._make((address, *values))

    def unchanged(self, descriptor: Descriptor, raw: bytes) -> bool:
        """Whether it says the same as before, its place in the list aside: neighbours come and go."""
        return self._struct.unpack(raw)[2:] == descriptor[3 : self._fields]

    def _joinstate(self, descriptor: Descriptor) -> Optional[int]:
        if self.lists.version < _JOINSTATE_SINCE:
            return None
        return descriptor.join & 0xFFFFFFFF if self.lists.order == "<" else descriptor.join >> 32

    def fate(self, descriptor: Descriptor, live: Collection[int]) -> Fate:
        """Judge a descriptor by itself; ``live`` are tids as the target numbers them."""
        joinstate = self._joinstate(descriptor)
        if descriptor.tid in live:
            return Fate.ALIVE
        if descriptor.cancelhandling & _TERMINATED:
            return Fate.JOINED
        if descriptor.tid < 0:
            return Fate.JOINED if descriptor.cancelhandling & _EXITING else Fate.BEING_CREATED
        cleared = descriptor.tid == 0 if joinstate is None else joinstate == _JOINSTATE_EXITED
        # A thread that ends by a bare exit system call never gets to set EXITING.
        started = bool(descriptor.cancelhandling & _EXITING) or (
            self._knows_setxid and descriptor.setxid == 0
        )
        if cleared and started:
            # One that is being detached after its end is freed at once; one that is detached and never set
            # EXITING ended by a bare exit system call, and is not (nptl/pthread_detach.c).
            ends_now = self.detached(descriptor) and bool(descriptor.cancelhandling & _EXITING)
            return Fate.JOINED if ends_now else Fate.EXITED
        return Fate.UNKNOWN if descriptor.tid and not cleared else Fate.BEING_CREATED

    def detached(self, descriptor: Descriptor) -> bool:
        """It needs no join; ``joinid`` is the descriptor itself then, or ``joinstate`` says so.

        Who waits in pthread_join glibc does not note: 2.28 to 2.42 never write a joiner into ``joinid``
        (nptl/pthread_join_common.c compares it with the joiner, to set it to NULL), 2.43 has no ``joinid``.
        """
        joinstate = self._joinstate(descriptor)
        return bool(descriptor.join) if joinstate is None else joinstate == _JOINSTATE_DETACHED
