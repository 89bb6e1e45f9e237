# SPDX-License-Identifier: Apache-2.0
"""Assigns the copied stacks to mappings, clone calls and findings.

In the BPF maps a site is a signature.  From here on a site is the number of a stack (``SiteStacks.stack``),
so that one place in the program is one site even if it had several signatures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Optional

from ebpftrace.capture.layout import UNSEEN_SITE
from ebpftrace.model import (
    FailedCall,
    Finding,
    Frame,
    Mapping,
    Orphan,
    OwnedBy,
    Stack,
    StackSource,
    ThreadStart,
)
from ebpftrace.text import error_name
from ebpftrace.unwind.sites import Call, SiteStacks

_CALLED_SHOWN = 3
"""Most functions shown that the threads of a finding were started with."""


class Attribution:
    """The stacks of one report."""

    def __init__(self, stacks: SiteStacks) -> None:
        self._stacks = stacks
        self._copied: set[Call] = set()
        self._missing: set[Call] = set()
        self._places: dict[tuple[Frame, ...], int] = {}
        self._place_of: dict[int, int] = {}

    def number(self, mappings: list[Mapping]) -> None:
        """Replace the mappings' signatures by the numbers of their stacks; in place, to save memory."""
        for index, mapping in enumerate(mappings):
            if mapping.mapper is not None and mapping.made_at is not None:
                site = self._site(mapping.site, (mapping.mapper.tid, mapping.made_at))
                mappings[index] = mapping._replace(site=site)

    def runs(self, runs: Iterable[ThreadStart]) -> list[ThreadStart]:
        """Return the clone calls with the numbers of their stacks in place of signatures."""
        return [run._replace(site=self._site(run.site, _clone_call(run))) for run in runs]

    def finding(self, finding: Finding) -> Finding:
        """Return the finding with notes on stacks that were not copied at every call."""
        made: Counter[int] = Counter()
        copied: Counter[int] = Counter()
        called: Counter[str] = Counter()
        for orphan in finding.orphans:
            seen = self._call(orphan)
            if seen is not None:
                place, call = seen
                made[place] += 1
                copied[place] += call in self._copied
                function = self._stacks.called(call)
                if function is not None:
                    called[function] += 1
        sites = tuple(
            replace(site, stack=site.stack.seen_for(copied[place], made[place]))
            for site, place in ((site, self._places.get(site.stack.frames, 0)) for site in finding.sites)
        )
        return replace(
            finding,
            sites=sites,
            stack=sites[0].stack if sites else finding.stack,
            called=tuple(called.most_common(_CALLED_SHOWN)),
        )

    def _call(self, orphan: Orphan) -> Optional[tuple[int, Call]]:
        """Return the place and the call whose stack a finding shows: a stack's clone call, else the mmap."""
        mapping, run = orphan.outstanding.mapping, orphan.outstanding.run
        if run is not None and orphan.outstanding.owned_by is OwnedBy.RUNS_ON_IT and run.site:
            place = self._place(run.site)
            if place or not self._place(mapping.site):
                return place, _clone_call(run)
        if mapping.mapper is None or mapping.made_at is None:
            return None
        return self._place(mapping.site), (mapping.mapper.tid, mapping.made_at)

    def _place(self, site: int) -> int:
        """Return one number for all sites whose stacks have the same frames; 0 where there are none."""
        place = self._place_of.get(site)
        if place is None:
            stack = self.stack(site)
            place = self._places.setdefault(stack.frames, len(self._places) + 1) if stack.frames else 0
            self._place_of[site] = place
        return place

    @property
    def missing(self) -> int:
        """Number of mappings and clone calls without a stack although one was wanted."""
        return len(self._missing)

    def stack(self, site: int) -> Stack:
        """Return the stack of a numbered site."""
        return self._stacks.stack(site)

    def _site(self, signature: int, call: Call) -> int:
        if signature == UNSEEN_SITE:
            return 0  # no stack was wanted
        stack, source = self._stacks.origin(signature, call)
        if source is StackSource.COPIED:
            self._copied.add(call)
        elif source is StackSource.NONE:
            self._missing.add(call)
        return stack


def with_failures(finding: Finding, failed: Iterable[FailedCall]) -> Finding:
    """Return the finding with evidence that munmap was called on its mappings and failed, if it was."""
    tries = sorted((call.start, call.error) for call in failed if call.call == "munmap")
    starts = [start for start, _ in tries]
    tried: Counter[int] = Counter()
    for orphan in finding.orphans if tries else ():
        for start, end in orphan.outstanding.mapping.pieces:
            touching = tries[bisect_left(starts, start) : bisect_left(starts, end)]
            if touching:
                tried[touching[-1][1]] += 1
                break
    why = tuple(
        f"munmap was called on {number} of them and failed: {error_name(error)}"
        for error, number in tried.most_common()
    )
    return replace(finding, evidence=(*finding.evidence, *why)) if why else finding


def _clone_call(run: ThreadStart) -> Call:
    return run.creator.tid, run.thread.started_at
