"""The verdict before a trace begins: what glibc's books alone prove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from ebpftrace.diagnosis.evidence import Evidence
from ebpftrace.diagnosis.verdicts import diagnose
from ebpftrace.model import Books, Finding, Frame
from ebpftrace.vmas import Vmas


def baseline_verdict(
    books: Books,
    vmas: Vmas,
    name_of: Callable[[int], Optional[Frame]],
    earlier: Optional[Books] = None,
    futex_waits: frozenset[int] = frozenset(),
) -> list[Finding]:
    """Exited, never-joined threads by start routine, most bytes first; empty unless the books were READ.

    ``books`` and ``vmas`` (with RSS where known) are of one moment; ``name_of`` names a start routine.
    One reading can't tell a thread that is about to be joined: with ``earlier``, a reading at least
    ``min_age`` before, only who had exited by then is a leak, and later ones are "just exited".
    """
    evidence = Evidence(
        outstanding=(),
        books=books,
        vmas=vmas,
        tgid=0,
        attached_at=0,
        report_at=0,
        name_of=name_of,
        earlier_books=earlier,
        futex_waits=futex_waits,
    )
    return list(diagnose(evidence).findings)
