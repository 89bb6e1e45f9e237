# SPDX-License-Identifier: Apache-2.0
"""Sites: which mappings come from the same place in the program."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Callable

from ebpftrace.model import NO_STACK, Frame, Mapping, Outstanding, OwnedBy, Stack, ThreadStart

SiteKey = tuple[Hashable, ...]

_ONE_CALL = 200_000
"""ns; the mmap and the clone of one pthread_create are closer than this (usually a tenth of it), so that no
other thread can have run on the stack and been joined in between."""


class Sites:
    """Call stacks by the kernel's site number; numbers whose symbolized stacks are equal are one site.

    The kernel's number is a hash over words of the stack, some of which only resemble return addresses, so
    one call path may have several numbers.  The frames show that they are one.
    """

    def __init__(self, stack_of: Callable[[int], Stack]) -> None:
        self._stack_of = stack_of
        self._stacks: dict[int, Stack] = {0: NO_STACK}
        self._by_frames: dict[tuple[Frame, ...], SiteKey] = {}
        self._by_numbers: dict[tuple[int, ...], tuple[SiteKey, Stack]] = {}

    def stack(self, site: int) -> Stack:
        """The call stack of a site number, NO_STACK if there is none."""
        found = self._stacks.get(site)
        if found is None:
            found = self._stacks[site] = self._stack_of(site)
        return found

    def of(self, outstanding: Outstanding) -> tuple[SiteKey, Stack]:
        """The site of a mapping: where the thread that runs on it was created, else where it was mapped.

        If no stack was recorded for the creation of the thread, the site of the mmap call counts only if that
        call came just before: glibc reuses a stack for one thread after the other.  Mappings without any site
        are grouped by size, protection, flags and kind of owner.
        """
        mapping, run = outstanding.mapping, outstanding.run
        sites: tuple[int, ...] = (mapping.site,)
        if run is not None and outstanding.owned_by is OwnedBy.RUNS_ON_IT:
            sites = (run.site, mapping.site if _is_one_call(mapping, run) else 0)
        if not any(sites):
            return ("shape", mapping.size, mapping.prot, mapping.flags, outstanding.owned_by), NO_STACK
        found = self._by_numbers.get(sites)
        if found is None:
            found = self._by_numbers[sites] = self._find(sites)
        return found

    def _find(self, sites: tuple[int, ...]) -> tuple[SiteKey, Stack]:
        for site in sites:
            stack = self.stack(site)
            if stack.frames:
                return self._by_frames.setdefault(stack.frames, ("stack", site)), stack
        site = next(filter(None, sites))
        return ("site", site), self.stack(site)


def _is_one_call(mapping: Mapping, run: ThreadStart) -> bool:
    """Whether the stack was mapped for this very thread."""
    if mapping.made_at is None or mapping.mapper != run.creator:
        return False
    return 0 <= run.thread.started_at - mapping.made_at <= _ONE_CALL
