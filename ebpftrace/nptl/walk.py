# SPDX-License-Identifier: Apache-2.0
"""Walks a doubly linked list in the memory of a process that keeps changing it.

Nothing is locked and no thread is stopped, so each step is checked: the node that ``next`` leads to must
point back to the previous one.  If it does not, the list has changed there, and the walk goes back a few
nodes and reads that part again.  Every walk is bounded in nodes and repetitions, and so in time and memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Optional

from ebpftrace.nptl.struct_pthread import Descriptor, Format
from ebpftrace.procfs.memory import Readable

MAX_NODES = 1 << 18
"""Four times the mappings a process may have by default (vm.max_map_count), at one stack each."""
_STEPS_BACK = (0, 0, 0, 1, 4, 16, 64, 1024, MAX_NODES)
"""How many nodes the walk goes back at each failed check in one place; the last one starts over."""
_MAX_READS = 4 * MAX_NODES
_POINTER = 8


@dataclass(frozen=True)
class Walk:
    """The result of one walk."""

    descriptors: list[Descriptor]
    """In the order of the list: the newest thread first."""
    complete: bool
    """The walk came back to the head; else the list is broken, endless, or changed during every reading."""


class Walker:
    """Walks the lists of one process; all walks share one budget of reads."""

    def __init__(self, memory: Readable, form: Format) -> None:
        self._memory = memory
        self.form = form
        self.link = form.lists.layout.link
        """Offset of the ``list_t`` in a descriptor."""
        self._reads_left = _MAX_READS

    def walk(self, head: int) -> Walk:
        """Read all descriptors of the list at ``head``; if it is broken, those reachable from either end."""
        forward = _Path(self, head, backward=False)
        if forward.follow():
            return Walk(forward.descriptors, True)
        seen = {descriptor.address for descriptor in forward.descriptors}
        backward = _Path(self, head, backward=True)
        backward.follow()
        rest = [descriptor for descriptor in reversed(backward.descriptors) if descriptor.address not in seen]
        return Walk(forward.descriptors + rest, False)

    def read(self, node: int) -> Optional[Descriptor]:
        """Read the descriptor whose ``list_t`` is at ``node``; None if there can't be one."""
        if node % _POINTER or self._reads_left <= 0:
            return None
        self._reads_left -= 1
        try:
            return self.form.unpack(node, self._memory.read(node, self.form.size))
        except (OSError, OverflowError):
            return None

    def unchanged(self, descriptor: Descriptor) -> bool:
        """Whether a second reading gives the same descriptor, apart from its links."""
        try:
            raw = self._memory.read(descriptor.address + self.link, self.form.size)
        except OSError:
            return False
        return self.form.unchanged(descriptor, raw)

    def pointer(self, address: int) -> Optional[int]:
        """Read a pointer from the target's memory; None if the address is not readable."""
        try:
            raw = self._memory.read(address, _POINTER)
        except (OSError, OverflowError):
            return None
        (value,) = struct.unpack(self.form.lists.order + "Q", raw)
        return int(value)

    def first(self, head: int, backward: bool) -> Optional[int]:
        """Read the node at one end of the list."""
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
        """Walk to the end; returns whether the head was reached."""
        came_from, node = self._head, self._walker.first(self._head, self._backward)
        furthest = failed_checks = 0
        # Names of this function: a process may have a hundred thousand threads that nobody joined.
        read, seen, descriptors = self._walker.read, self._seen, self.descriptors
        ahead, behind = (2, 1) if self._backward else (1, 2)  # ``Descriptor.prev`` and ``next``
        while node is not None and len(descriptors) < MAX_NODES:
            if node == self._head:
                self.complete = True
                break
            descriptor = None if node in seen else read(node)
            if descriptor is not None and descriptor[behind] == came_from:
                descriptors.append(descriptor)
                seen.add(node)
                came_from, node = node, descriptor[ahead]
                continue
            if len(descriptors) > furthest:
                furthest, failed_checks = len(descriptors), 0
            if failed_checks == len(_STEPS_BACK):
                break
            came_from, node = self._go_back(_STEPS_BACK[failed_checks])
            failed_checks += 1
        return self.complete

    def _go_back(self, steps: int) -> tuple[int, Optional[int]]:
        """Drop the last ``steps`` nodes, and those whose links changed; returns (last node, next)."""
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
