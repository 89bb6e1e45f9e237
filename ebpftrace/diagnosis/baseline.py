# SPDX-License-Identifier: Apache-2.0
"""The verdict without a trace: what glibc's thread lists and the search say of one moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

from ebpftrace.diagnosis.evidence import Diagnosis, Evidence, no_search
from ebpftrace.diagnosis.history import History
from ebpftrace.diagnosis.verdicts import diagnose
from ebpftrace.model import Books, Frame, Interval, Search, Suspect
from ebpftrace.vmas import Vmas


def baseline_verdict(
    books: Books,
    vmas: Vmas,
    name_of: Callable[[int], Optional[Frame]],
    earlier: Optional[Books] = None,
    search: Callable[[Sequence[Suspect]], Search] = no_search,
    history: Optional[History] = None,
    stack_shaped: Sequence[Interval] = (),
) -> Diagnosis:
    """Exited, unjoined threads by start routine, leaks first, then by bytes; none unless the books were READ.

    ``books`` and ``vmas`` (with RSS where known) are of one moment; ``name_of`` names a start routine.
    ``earlier`` is a reading at least ``min_age`` before: without a search, who had not exited by then is
    "just exited".  ``history`` has both readings: who left the lists in between was joined.
    ``stack_shaped`` is as in ``Evidence``.
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
        history=history or History(),
        search=search,
        stack_shaped=stack_shaped,
    )
    return diagnose(evidence)
