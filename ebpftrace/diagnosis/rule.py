# SPDX-License-Identifier: Apache-2.0
"""What a rule is: which orphans it claims, and how it judges those that belong together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS, Evidence
from ebpftrace.diagnosis.history import History
from ebpftrace.diagnosis.origin import Libc
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.diagnosis.timeseries import keeps_growing
from ebpftrace.model import NOT_SEARCHED, Certainty, ReadState, Search, Verdict

LONG_ENOUGH = 15 * NS
"""ns; a window must be this long before "their number grows and none is freed" is called a leak.

Memory that is still referred to may yet be freed: a program that joins its threads every ten seconds
looks like a leak in any shorter window.
"""

_MIN_NET_GROWTH = 0.5
"""VIRT must grow by this part of what a site left in the window; otherwise it only replaced old orphans."""


@dataclass(frozen=True)
class Context:
    """What a rule knows besides the orphans it judges."""

    evidence: Evidence
    libc: Libc
    overflowing: frozenset[SiteKey] = frozenset()
    """Sites that left more stacks than glibc's cache can hold, and kept leaving them over the window."""
    stale: frozenset[Hashable] = frozenset()
    """Kinds of orphans most of which are lost: references to the few others are stale copies."""
    only_site: dict[int, SiteKey] = field(default_factory=dict)
    """Start routine -> the site that created its threads, where the trace saw exactly one such site."""
    joining: frozenset[Hashable] = frozenset()
    """Creators (see ``unjoined.creators``) of the threads that were being joined when the target died."""
    allocator: Optional[str] = None
    """An allocator or runtime library that is mapped into the target."""
    search: Search = NOT_SEARCHED
    overlooked: bool = False
    """The memory that was not searched is large enough to hold a reference to every orphan called lost."""
    history: History = field(default_factory=History)

    @property
    def lists_read(self) -> bool:
        """glibc's thread lists were read consistently, so what they say is proof."""
        return self.evidence.thread_lists.state is ReadState.READ

    @property
    def cache_listed(self) -> bool:
        """The list of cached stacks could be read, and is complete."""
        thread_lists = self.evidence.thread_lists
        return self.lists_read and (bool(thread_lists.stack_cache) or thread_lists.stack_cache_bytes == 0)

    @property
    def ended(self) -> bool:
        """The target has exited, so its memory can't be searched any more."""
        return self.evidence.target_exited_at is not None

    @property
    def window(self) -> int:
        """Ns that the trace lasted; 0 where nothing was traced."""
        return max(0, self.evidence.judged_at - self.evidence.attached_at)

    def age(self, time: int) -> int:
        """Ns from ``time`` to the moment of judgement; negative if the target had begun to exit by then."""
        return self.evidence.judged_at - time

    def keeps_growing(self, cases: Sequence[Case]) -> bool:
        """Whether these orphans of one site were made all through the window and stayed.

        An owner must have exited ``min_age`` ago to count, so the window ends that much earlier.
        """
        made = (case.mapping.made_at for case in cases)
        return keeps_growing(
            (time for time in made if time is not None),
            self.evidence.attached_at,
            self.evidence.judged_at - self.evidence.min_age,
        )

    def outgrows(self, cases: Sequence[Case]) -> bool:
        """Whether VIRT grew by what these orphans take, so that they do not merely replace older ones.

        Objects that live longer than the window all survive it, although an old one goes for each new one.
        """
        growth = self.evidence.virt_growth
        left = sum(case.mapping.size for case in cases if case.mapping.made_at is not None)
        return growth is None or growth >= _MIN_NET_GROWTH * left

    def is_leak_of_kept(self, cases: Sequence[Case]) -> bool:
        """Whether orphans that could still be freed are a leak: their number grows and none is freed."""
        return self.window >= LONG_ENOUGH and self.keeps_growing(cases) and self.outgrows(cases)

    @property
    def certainty_of_lost(self) -> Certainty:
        """How certain it is that an orphan is lost if the search found no reference to it."""
        return Certainty.PROVED if self.search.complete else Certainty.LIKELY


@dataclass(frozen=True)
class Judgement:
    """The verdict of a rule on orphans that belong together."""

    verdict: Verdict
    leak: bool
    evidence: tuple[str, ...]
    advice: str
    certainty: Certainty = Certainty.LIKELY
    undecided: bool = False
    """It can't be known whether this is a leak."""


def _together(_case: Case, _context: Context) -> Hashable:
    return None


@dataclass(frozen=True, eq=False)
class Rule:
    """Judges one kind of orphan.  The rules are tried in order; the first that claims an orphan judges it."""

    claims: Callable[[Case, Context], bool]
    judge: Callable[[Sequence[Case], Context], Judgement]
    """Judges orphans that have the same site and the same ``split``; the sequence is never empty."""
    split: Callable[[Case, Context], Hashable] = _together
    by_site: bool = True
    """Judge each site separately; False if only the sum over all sites means something."""
