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
    """The mappings of one thread added up."""

    thread: Thread
    mappings: int = 0
    by_site: dict[int, int] = field(default_factory=dict)

    def stack(self, stack_of: Callable[[int], Stack]) -> Stack:
        """Return the call stack of the site with most bytes; sites without a stack are passed over."""
        most_first = sorted(self.by_site, key=self.by_site.__getitem__, reverse=True)
        stacks = (stack_of(site) for site in most_first if site)
        return next((stack for stack in stacks if stack.frames), NO_STACK)


def totals(
    outstanding: Iterable[Outstanding],
    threads: collections.abc.Mapping[ThreadId, Thread],
    brk_growth: collections.abc.Mapping[ThreadId, int],
    stack_of: Callable[[int], Stack],
) -> list[ThreadTotal]:
    """Return the totals of each owner, most bytes first; mappings without an owner are left out.

    ``brk_growth``: net bytes by which a thread moved the break.  A thread that only did that has no mappings.
    ``stack_of``: site -> stack, NO_STACK where unknown.
    """
    sums: dict[ThreadId, _Sum] = {}
    for mapping, owner, _, _, _ in outstanding:
        if owner is None:
            continue
        total = sums.get(owner.id)
        if total is None:
            total = sums[owner.id] = _Sum(owner)
        total.mappings += 1
        site = mapping.site
        total.by_site[site] = total.by_site.get(site, 0) + mapping.size
    for thread in brk_growth:
        if thread in threads:
            sums.setdefault(thread, _Sum(threads[thread]))
    found = [
        ThreadTotal(
            thread=total.thread,
            mappings=total.mappings,
            size=sum(total.by_site.values()),
            brk_growth=brk_growth.get(thread, 0),
            stack=total.stack(stack_of),
        )
        for thread, total in sums.items()
    ]
    return sorted(found, key=lambda total: (-total.size, -total.mappings, total.thread.id))
