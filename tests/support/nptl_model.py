# SPDX-License-Identifier: Apache-2.0
"""glibc's thread lists as glibc changes them: one write to memory at a time, with a reader in between.

Follows nptl/allocatestack.c, nptl-stack.c, pthread_create.c, nptl_free_tcb.c and include/list.h.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from ebpftrace.nptl.lists import Layout, Lists

LAYOUT = Layout(
    size=0x200, link=0x10, next=0, prev=8, tid=0x20, cancelhandling=0x24,
    sched_priority=0x50, start_routine=0x58, next_event=0x60,
)  # fmt: skip
BLOCK = 0x78
BLOCK_SIZE = 0x10000
HEADS = 0x1000
USED, USER, CACHE, CACHE_SIZE = HEADS, HEADS + 16, HEADS + 32, HEADS + 48
EXITING, TERMINATED = 1 << 4, 1 << 5
JOIN = LAYOUT.sched_priority - 16

Steps = Iterator[None]


def lists(version: tuple[int, int]) -> Lists:
    return Lists(version, False, "<", LAYOUT, USED, USER, CACHE, CACHE_SIZE, None)


class Nptl:
    """A process of one glibc version; every method that changes memory yields after each write."""

    def __init__(self, version: tuple[int, int], choices: random.Random) -> None:
        self.version = version
        self.random = choices
        self.setxid = LAYOUT.sched_priority - (20 if version >= (2, 36) else 28)
        self.between = False
        """No thread is in the middle of anything."""
        self.pages: dict[int, bytearray] = {HEADS >> 12: bytearray(4096)}
        for head in (USED, USER, CACHE):
            self._put(head, "<QQ", head, head)
        self.blocks = 0
        self.cached: list[int] = []
        self.running: list[int] = []
        self.detached: set[int] = set()
        self.dead: set[int] = set()
        """Descriptors of threads that have exited and that nobody has joined, at this moment."""
        self.were_dead: set[int] = set()
        """The same at any moment since the last ``forget``."""
        self.live: set[int] = set()
        self.tids = 100
        self.pace = 0.0
        """How many writes happen during each half of a read."""
        self._work = self._for_ever()

    # --- what a reader sees ---------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """A copy that may be torn anywhere."""
        self.advance()
        cut = self.random.randint(0, size)
        first = self._get(address, cut)
        self.advance()
        return first + self._get(address + cut, size - cut)

    def advance(self) -> None:
        steps = int(self.pace) + (self.random.random() < self.pace % 1)
        for _ in range(steps):
            next(self._work)

    def finish(self) -> None:
        """Go on to where no thread is in the middle of anything."""
        while not self.between:
            next(self._work)

    def forget(self) -> None:
        self.were_dead = set(self.dead)

    # --- memory ---------------------------------------------------------------------------------

    def _get(self, address: int, size: int) -> bytes:
        page = self.pages.get(address >> 12)
        if size and (page is None or (address & 4095) + size > 4096):
            raise OSError("not mapped")
        return bytes(page[address & 4095 : (address & 4095) + size]) if page and size else b""

    def _put(self, address: int, code: str, *values: int) -> None:
        struct.pack_into(code, self.pages[address >> 12], address & 4095, *values)

    def _pointer(self, address: int) -> int:
        return int(struct.unpack("<Q", self._get(address, 8))[0])

    def _cancelhandling(self, descriptor: int) -> int:
        return int(struct.unpack("<i", self._get(descriptor + LAYOUT.cancelhandling, 4))[0])

    # --- include/list.h -------------------------------------------------------------------------

    def _add(self, descriptor: int, head: int) -> Steps:
        node, after = descriptor + LAYOUT.link, self._pointer(head)
        for address, value in ((node, after), (node + 8, head), (after + 8, node), (head, node)):
            self._put(address, "<Q", value)
            yield

    def _delete(self, descriptor: int) -> Steps:
        node = descriptor + LAYOUT.link
        after, before = self._pointer(node), self._pointer(node + 8)
        self._put(after + 8, "<Q", before)
        yield
        self._put(before, "<Q", after)
        yield

    # --- the life of a thread -------------------------------------------------------------------

    def _field(self, descriptor: int, offset: int, code: str, value: int) -> Steps:
        self._put(descriptor + offset, code, value)
        yield

    def create(self, detached: bool) -> Steps:
        fresh = not self.cached or self.random.random() < 0.3
        if fresh:
            self.blocks += 1
            block = 0x100000 + self.blocks * BLOCK_SIZE
            descriptor = block + BLOCK_SIZE - 4096 + 0x700
            self.pages[descriptor >> 12] = bytearray(4096)
            self._put(descriptor + BLOCK, "<QQQQ", block, BLOCK_SIZE, 4096, 4096)
            yield from self._field(descriptor, self.setxid, "<i", -1)
        else:
            descriptor = self.cached.pop(self.random.randrange(len(self.cached)))
            yield from self._field(descriptor, self.setxid, "<i", -1)
            yield from self._delete(descriptor)
        yield from self._add(descriptor, USED)
        if not fresh:
            yield from self._field(descriptor, LAYOUT.cancelhandling, "<i", 0)
        yield from self._field(descriptor, LAYOUT.start_routine, "<Q", 0x40000 + self.blocks)
        if self.version >= (2, 43):
            yield from self._field(descriptor, JOIN, "<I", 3 if detached else 2)
        else:
            yield from self._field(descriptor, JOIN, "<Q", descriptor if detached else 0)
        self.tids += 1
        self.live.add(self.tids)
        yield from self._field(descriptor, LAYOUT.tid, "<i", self.tids)
        yield from self._field(descriptor, self.setxid, "<i", 0)
        self.running.append(descriptor)
        if detached:
            self.detached.add(descriptor)

    def exit(self, descriptor: int) -> Steps:
        self.running.remove(descriptor)
        tid = struct.unpack("<i", self._get(descriptor + LAYOUT.tid, 4))[0]
        yield from self._field(descriptor, LAYOUT.cancelhandling, "<i", EXITING)
        if self.version >= (2, 43):
            yield from self._field(descriptor, JOIN, "<I", 1)
        detached = descriptor in self.detached
        if detached:
            self.detached.remove(descriptor)
            yield from self._free(descriptor)
        if self.version >= (2, 43):
            yield from self._field(descriptor, LAYOUT.tid, "<i", 0)
        if not detached:
            self.dead.add(descriptor)
            self.were_dead.add(descriptor)
        if self.version >= (2, 43):
            yield from self._field(descriptor, JOIN, "<I", 0)
        else:
            yield from self._field(descriptor, LAYOUT.tid, "<i", 0)
        self.live.discard(tid)
        if detached:
            self.cached.append(descriptor)

    def join(self, descriptor: int) -> Steps:
        self.dead.remove(descriptor)
        if self.version < (2, 43):
            yield from self._field(descriptor, LAYOUT.tid, "<i", -1)
        yield from self._free(descriptor)
        self.cached.append(descriptor)

    def _free(self, descriptor: int) -> Steps:
        flags = self._cancelhandling(descriptor) | TERMINATED
        yield from self._field(descriptor, LAYOUT.cancelhandling, "<i", flags)
        yield from self._delete(descriptor)
        yield from self._add(descriptor, CACHE)

    def unmap(self, descriptor: int) -> Steps:
        self.cached.remove(descriptor)
        yield from self._delete(descriptor)
        del self.pages[descriptor >> 12]
        yield

    def settle(self, steps: Steps) -> None:
        for _ in steps:
            pass

    def _for_ever(self) -> Steps:
        """Threads come and go; the dead of the beginning stay."""
        kept = set(self.dead)
        while True:
            self.between = True
            yield
            self.between = False
            choices: list[Steps] = [self.create(self.random.random() < 0.5)] if len(self.running) < 6 else []
            if self.running:
                choices += [self.exit(self.random.choice(self.running))] * 2
            joinable = sorted(self.dead - kept)
            if joinable:
                choices += [self.join(self.random.choice(joinable))] * 2
            if len(self.cached) > 3:
                choices.append(self.unmap(self.random.choice(self.cached)))
            yield from self.random.choice(choices)

    def begin(self, dead: int) -> set[int]:
        """Threads that ended and that nobody will ever join; from now on the lists change."""
        for _ in range(dead):
            self.settle(self.create(False))
            self.settle(self.exit(self.running[-1]))
        kept = set(self.dead)
        self._work = self._for_ever()
        return kept
