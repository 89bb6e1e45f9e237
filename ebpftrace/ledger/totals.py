# SPDX-License-Identifier: Apache-2.0
"""Outstanding mappings and brk growth by thread, for the table of threads."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Callable

from ebpftrace.model import NO_STACK, Outstanding, Stack, Thread, ThreadId, ThreadTotal


@dataclass
class _Sum:
    """What one thread owns so far."""

    thread: Thread
    mappings: int = 0
    by_site: dict[int, int] = field(default_factory=dict)

    def stack(self, stack_of: Callable[[int], Stack]) -> Stack:
        """Return the stack of the site with most bytes, of those that have one."""
        most_first = sorted(self.by_site, key=self.by_site.__getitem__, reverse=True)
        stacks = (stack_of(site) for site in most_first if site)
        return next((stack for stack in stacks if stack.frames), NO_STACK)


def totals(
    outstanding: Iterable[Outstanding],
    threads: collections.abc.Mapping[ThreadId, Thread],
    brk_growth: collections.abc.Mapping[ThreadId, int],
    stack_of: Callable[[int], Stack],
) -> list[ThreadTotal]:
    """Return what each owner has, most bytes first; what has no owner is left out.

    ``brk_growth``: bytes by which a thread moved the break, net; it belongs to the address space, so
    a thread that only did that has no mappings.  ``stack_of``: site -> stack, NO_STACK where unknown.
    """
    sums: dict[ThreadId, _Sum] = {}
    for mapping, owner, _, _, _ in outstanding:
        if owner is None:
            continue
        of = sums.get(owner.id)
        if of is None:
            of = sums[owner.id] = _Sum(owner)
        of.mappings += 1
        site = mapping.site
        of.by_site[site] = of.by_site.get(site, 0) + mapping.size
    for thread in brk_growth:
        if thread in threads:
            sums.setdefault(thread, _Sum(threads[thread]))
    found = [
        ThreadTotal(
            thread=of.thread,
            mappings=of.mappings,
            size=sum(of.by_site.values()),
            brk_growth=brk_growth.get(thread, 0),
            stack=of.stack(stack_of),
        )
        for thread, of in sums.items()
    ]
    return sorted(found, key=lambda total: (-total.size, -total.mappings, total.thread.id))
