# SPDX-License-Identifier: Apache-2.0
"""The shape of a rule: which orphans it claims, and what it says of those that belong together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS, Evidence
from ebpftrace.diagnosis.growth import keeps_growing
from ebpftrace.diagnosis.history import History
from ebpftrace.diagnosis.origin import Libc
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.model import NOT_SEARCHED, BooksState, Certainty, Search, Verdict

LONG_ENOUGH = 15 * NS
"""A window from which "nobody frees them, and there are ever more" can be concluded.  What is kept may still
be freed: a program that joins its threads every ten seconds looks like a leak for less than that."""

_NET = 0.5
"""Part of what a place left in the window by which the whole must have grown: the rest replaced others."""


@dataclass(frozen=True)
class Context:
    """What a rule knows besides the orphans it judges."""

    evidence: Evidence
    libc: Libc
    overflowing: frozenset[SiteKey] = frozenset()
    """Places that leave more stacks than glibc's cache can hold, and go on."""
    stale: frozenset[Hashable] = frozenset()
    """Kinds of orphans most of which are lost: the few that are kept are stale copies."""
    only_place: dict[int, SiteKey] = field(default_factory=dict)
    """Start routine -> the place that created its threads, where the trace saw one such place."""
    joining: frozenset[Hashable] = frozenset()
    """What created threads that were being joined when the target died: ``unjoined.creators`` of them."""
    allocator: Optional[str] = None
    """An allocator or runtime library that is mapped into the target."""
    search: Search = NOT_SEARCHED
    overlooked: bool = False
    """What was not searched is enough to hold references to all that the search calls lost."""
    history: History = field(default_factory=History)

    @property
    def books_read(self) -> bool:
        """What glibc's books say is proof."""
        return self.evidence.books.state is BooksState.READ

    @property
    def cache_listed(self) -> bool:
        """The list of cached stacks could be read, and is complete."""
        books = self.evidence.books
        return self.books_read and (bool(books.stack_cache) or books.stack_cache_bytes == 0)

    @property
    def ended(self) -> bool:
        """The target is gone: nothing can be searched any more."""
        return self.evidence.target_exited_at is not None

    @property
    def window(self) -> int:
        """Ns that the trace lasted; 0 where nothing was traced."""
        return max(0, self.evidence.judged_at - self.evidence.attached_at)

    def age(self, exited_at: int) -> int:
        """Ns since an exit; negative for one after the target began to exit."""
        return self.evidence.judged_at - exited_at

    def keeps_growing(self, cases: Sequence[Case]) -> bool:
        """Whether these orphans of one place came all through the window and stayed.

        An owner needs ``min_age`` to count as exited, so the window ends that much earlier.
        """
        made = (case.mapping.made_at for case in cases)
        return keeps_growing(
            (time for time in made if time is not None),
            self.evidence.attached_at,
            self.evidence.judged_at - self.evidence.min_age,
        )

    def outgrows(self, cases: Sequence[Case]) -> bool:
        """Whether the address space grew by what these left in the window, so that they replace no others.

        Where objects live longer than the window, each new one stands all through it and an older one goes.
        """
        growth = self.evidence.virt_growth
        left = sum(case.mapping.size for case in cases if case.mapping.made_at is not None)
        return growth is None or growth >= _NET * left

    def is_leak_of_kept(self, cases: Sequence[Case]) -> bool:
        """Whether orphans that can still be freed are a leak all the same: ever more, and none goes."""
        return self.window >= LONG_ENOUGH and self.keeps_growing(cases) and self.outgrows(cases)

    @property
    def lost_is(self) -> Certainty:
        """How sure it is that what the search calls lost is lost."""
        return Certainty.PROVED if self.search.complete else Certainty.LIKELY


@dataclass(frozen=True)
class Judgement:
    """What a rule says of orphans of one place."""

    verdict: Verdict
    leak: bool
    evidence: tuple[str, ...]
    advice: str
    certainty: Certainty = Certainty.LIKELY
    undecided: bool = False
    """Whether this is a leak can't be told."""


def _together(_case: Case, _context: Context) -> Hashable:
    return None


@dataclass(frozen=True)
class Rule:
    """What decides over one kind of orphan.  Rules are asked in order; the first to claim one has it."""

    claims: Callable[[Case, Context], bool]
    judge: Callable[[Sequence[Case], Context], Judgement]
    """Judges orphans with equal place and ``split``; never an empty sequence."""
    split: Callable[[Case, Context], Hashable] = _together
    by_place: bool = True
    """Orphans of one place belong together; False where only their sum means something."""
    only_stacks: bool = False
    """It claims nothing that is no stack, so that it need not be asked."""
