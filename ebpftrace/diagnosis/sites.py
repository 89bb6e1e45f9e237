# SPDX-License-Identifier: Apache-2.0
"""Which mappings come from one place in the program."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Callable

from ebpftrace.model import NO_STACK, Frame, Mapping, Outstanding, OwnedBy, Run, Stack

SiteKey = tuple[Hashable, ...]

_ONE_CALL = 200_000
"""ns from the mmap to the clone of one pthread_create, which takes a tenth of it; no thread has run and been
joined in between."""


class Sites:
    """Stacks by site; sites whose named stacks are equal are one.

    A signature in the kernel may split one call path into several sites (it hashes words of the stack that
    only look like return addresses); the frames tell.
    """

    def __init__(self, stack_of: Callable[[int], Stack]) -> None:
        self._stack_of = stack_of
        self._stacks: dict[int, Stack] = {0: NO_STACK}
        self._by_frames: dict[tuple[Frame, ...], SiteKey] = {}
        self._places: dict[tuple[int, ...], tuple[SiteKey, Stack]] = {}

    def stack(self, site: int) -> Stack:
        """The stack of a site, NO_STACK where there is none."""
        found = self._stacks.get(site)
        if found is None:
            found = self._stacks[site] = self._stack_of(site)
        return found

    def place(self, outstanding: Outstanding) -> tuple[SiteKey, Stack]:
        """Where a mapping comes from: who created the thread that runs on it, else who mapped it.

        Of a thread whose creation was not recorded, who mapped the stack is an answer only where that was
        just before: glibc gives a stack to one thread after the other.  Without a site, mappings alike in
        size, protection, flags and kind of owner are taken together.
        """
        mapping, run = outstanding.mapping, outstanding.run
        sites: tuple[int, ...] = (mapping.site,)
        if run is not None and outstanding.owned_by is OwnedBy.RUNS_ON_IT:
            sites = (run.site, mapping.site if _is_one_call(mapping, run) else 0)
        if not any(sites):
            return ("shape", mapping.size, mapping.prot, mapping.flags, outstanding.owned_by), NO_STACK
        place = self._places.get(sites)
        if place is None:
            place = self._places[sites] = self._place(sites)
        return place

    def _place(self, sites: tuple[int, ...]) -> tuple[SiteKey, Stack]:
        for site in sites:
            stack = self.stack(site)
            if stack.frames:
                return self._by_frames.setdefault(stack.frames, ("stack", site)), stack
        site = next(filter(None, sites))
        return ("site", site), self.stack(site)


def _is_one_call(mapping: Mapping, run: Run) -> bool:
    """Whether the stack was mapped for this very thread."""
    if mapping.made_at is None or mapping.mapper != run.creator:
        return False
    return 0 <= run.thread.born - mapping.made_at <= _ONE_CALL
