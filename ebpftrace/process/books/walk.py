# SPDX-License-Identifier: Apache-2.0
"""Walks a doubly linked list in the memory of a process that keeps changing it.

Nothing is locked and nothing stops, so each step is checked: the node that ``next`` leads to must point back
to where we came from.  Where it does not, the list was changed there, and the walk goes back a little and
reads that part again.  Every walk is bounded in nodes and repetitions, and so in time and memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Optional

from ebpftrace.process.books.descriptors import Descriptor, Format
from ebpftrace.process.books.lists import Readable

MAX_NODES = 1 << 18
"""Four times the mappings a process may have by default (vm.max_map_count), at one stack each."""
_STEPS_BACK = (0, 0, 0, 1, 4, 16, 64, 1024, MAX_NODES)
"""How far each further doubt in one place goes back; the last one starts over."""
_MAX_READS = 4 * MAX_NODES
_POINTER = 8


@dataclass(frozen=True)
class Walk:
    """What one walk saw."""

    descriptors: list[Descriptor]
    """In the order of the list: the newest thread first."""
    complete: bool
    """It came back to the head; else the list is broken, endless, or changed under every reading."""


class Walker:
    """Walks the lists of one process; its budget of reads is for all its walks together."""

    def __init__(self, memory: Readable, form: Format) -> None:
        self._memory = memory
        self.form = form
        self.link = form.lists.layout.link
        """Offset of the ``list_t`` in a descriptor."""
        self._reads_left = _MAX_READS

    def walk(self, head: int) -> Walk:
        """All descriptors of the list at ``head``; of a broken one those that either end leads to."""
        forward = _Path(self, head, backward=False)
        if forward.follow():
            return Walk(forward.descriptors, True)
        seen = {descriptor.address for descriptor in forward.descriptors}
        backward = _Path(self, head, backward=True)
        backward.follow()
        rest = [descriptor for descriptor in reversed(backward.descriptors) if descriptor.address not in seen]
        return Walk(forward.descriptors + rest, False)

    def read(self, node: int) -> Optional[Descriptor]:
        """The descriptor whose ``list_t`` is at ``node``; None for what cannot be one."""
        if node % _POINTER or self._reads_left <= 0:
            return None
        self._reads_left -= 1
        try:
            return self.form.unpack(node, self._memory.read(node, self.form.size))
        except (OSError, OverflowError):
            return None

    def unchanged(self, descriptor: Descriptor) -> bool:
        """Whether a second reading says the same, its place in the list aside."""
        try:
            raw = self._memory.read(descriptor.address + self.link, self.form.size)
        except OSError:
            return False
        return self.form.unchanged(descriptor, raw)

    def pointer(self, address: int) -> Optional[int]:
        """A pointer in the target's memory; None where there is none."""
        try:
            raw = self._memory.read(address, _POINTER)
        except (OSError, OverflowError):
            return None
        (value,) = struct.unpack(self.form.lists.order + "Q", raw)
        return int(value)

    def first(self, head: int, backward: bool) -> Optional[int]:
        """The node at one end of the list."""
        layout = self.form.lists.layout
        return self.pointer(head + (layout.prev if backward else layout.next))


class _Path:
    """One walk in one direction."""

    def __init__(self, walker: Walker, head: int, backward: bool) -> None:
        self._walker = walker
        self._head = head
        self._backward = backward
        self._seen: set[int] = set()
        self.descriptors: list[Descriptor] = []
        self.complete = False

    def follow(self) -> bool:
        """Walk to the end; says whether the head was reached."""
        came_from, node = self._head, self._walker.first(self._head, self._backward)
        furthest = doubts = 0
        while node is not None and len(self.descriptors) < MAX_NODES:
            if node == self._head:
                self.complete = True
                break
            descriptor = None if node in self._seen else self._walker.read(node)
            if descriptor is not None and self._behind(descriptor) == came_from:
                self.descriptors.append(descriptor)
                self._seen.add(node)
                came_from, node = node, self._ahead(descriptor)
                continue
            if len(self.descriptors) > furthest:
                furthest, doubts = len(self.descriptors), 0
            if doubts == len(_STEPS_BACK):
                break
            came_from, node = self._go_back(_STEPS_BACK[doubts])
            doubts += 1
        return self.complete

    def _go_back(self, steps: int) -> tuple[int, Optional[int]]:
        """Drop the last ``steps`` nodes, and those that are no longer where they were: (last node, next)."""
        for _ in range(min(steps, len(self.descriptors))):
            self._drop()
        while self.descriptors:
            last = self.descriptors[-1]
            node = last.address + self._walker.link
            now = self._walker.read(node)
            if now is not None and self._behind(now) == self._behind(last):
                self.descriptors[-1] = now
                return node, self._ahead(now)
            self._drop()
        return self._head, self._walker.first(self._head, self._backward)

    def _drop(self) -> None:
        self._seen.discard(self.descriptors.pop().address + self._walker.link)

    def _ahead(self, descriptor: Descriptor) -> int:
        return descriptor.prev if self._backward else descriptor.next

    def _behind(self, descriptor: Descriptor) -> int:
        return descriptor.next if self._backward else descriptor.prev
