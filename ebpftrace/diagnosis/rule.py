"""The shape of a rule: which orphans it claims, and what it says of those that belong together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import Evidence
from ebpftrace.diagnosis.growth import keeps_growing
from ebpftrace.diagnosis.origin import Libc
from ebpftrace.diagnosis.sites import SiteKey
from ebpftrace.model import BooksState, Verdict


@dataclass(frozen=True)
class Context:
    """What a rule knows besides the orphans it judges."""

    evidence: Evidence
    libc: Libc
    overflowing: frozenset[SiteKey] = frozenset()
    """Places that leave more stacks than glibc's cache can hold, and go on."""
    in_turn: frozenset[int] = frozenset()
    """Start routines of threads that are joined one after the other just now."""
    allocator: Optional[str] = None
    """An allocator or runtime library that is mapped into the target."""

    @property
    def books_read(self) -> bool:
        """What glibc's books say is proof."""
        return self.evidence.books.state is BooksState.READ

    @property
    def cache_listed(self) -> bool:
        """The list of cached stacks could be read, and is complete."""
        books = self.evidence.books
        return self.books_read and (bool(books.stack_cache) or books.stack_cache_bytes == 0)

    def age(self, exited_at: int) -> int:
        """Ns since an exit; negative for one after the target began to exit."""
        return self.evidence.judged_at - exited_at

    def keeps_growing(self, cases: Sequence[Case]) -> bool:
        """Whether these orphans of one place are a leak that goes on.

        An owner needs ``min_age`` to count as exited, so the window ends that much earlier.
        """
        made = (case.mapping.made_at for case in cases)
        return keeps_growing(
            (time for time in made if time is not None),
            self.evidence.attached_at,
            self.evidence.judged_at - self.evidence.min_age,
        )


@dataclass(frozen=True)
class Judgement:
    """What a rule says of orphans of one place."""

    leak: bool
    evidence: tuple[str, ...]
    advice: str
    undecided: bool = False
    """The target ended before there was proof."""


def _together(_case: Case, _context: Context) -> Hashable:
    return None


@dataclass(frozen=True)
class Rule:
    """One verdict.  Rules are asked in order; the first to claim an orphan has it."""

    verdict: Verdict
    claims: Callable[[Case, Context], bool]
    judge: Callable[[Sequence[Case], Context], Judgement]
    """Judges orphans with equal place and ``split``; never an empty sequence."""
    split: Callable[[Case, Context], Hashable] = _together
    by_place: bool = True
    """Orphans of one place belong together; False where only their sum means something."""
    only_stacks: bool = False
    """It claims nothing that is no stack, so that it need not be asked."""
