# SPDX-License-Identifier: Apache-2.0
"""Two runs compared, leak by leak: what is new, gone, grown or shrunk.

A leak is known by its fingerprint.  Several findings may have one: they are added up, over all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import Optional

from ebpftrace.fingerprint import fingerprint
from ebpftrace.frames import called, culprit
from ebpftrace.model import Finding, Report, Verdict

_STEADY = 0.1
"""Part by which the rate of a leak in a process that runs on may differ: it is the same leak all the same."""
_CHANCE = 3.0
"""Standard deviations of a number of leaks that come at random: its root, as Poisson has it."""
_COMPARABLE = 0.1
"""Part by which two windows may differ in length and their counts still be compared as they are."""


@dataclass(frozen=True)
class Amount:
    """How much of one leak there is in one run."""

    count: int = 0
    size: int = 0
    bytes_per_minute: Optional[float] = None
    """None where it did not grow through the window."""

    def __add__(self, other: Amount) -> Amount:
        rates = [one for one in (self.bytes_per_minute, other.bytes_per_minute) if one is not None]
        return Amount(self.count + other.count, self.size + other.size, sum(rates) if rates else None)


@dataclass(frozen=True)
class Leak:
    """One leak of a run."""

    fingerprint: str
    verdict: Verdict
    place: str
    """The function that made it; not escaped."""
    routine: str
    """What its threads ran; empty where unknown, or none of threads."""
    source: str
    """``file:line`` of the function; empty where unknown."""
    amount: Amount


class Change(Enum):
    """What became of a leak from one run to the other."""

    NEW = "new"
    GROWN = "grown"
    SAME = "same"
    SHRUNK = "shrunk"
    GONE = "gone"

    @property
    def is_worse(self) -> bool:
        """A gate fails."""
        return self in (Change.NEW, Change.GROWN)


@dataclass(frozen=True)
class Compared:
    """A leak in both runs."""

    leak: Leak
    """As the new run has it; of one that is gone, as the old one had it."""
    change: Change
    before: Amount
    after: Amount


@dataclass(frozen=True)
class Run:
    """One side of a comparison."""

    leaks: Mapping[str, Leak]
    seconds: float
    """Length of the longest window."""
    ended: bool
    """All processes were judged at their ends."""
    undecided: int
    """Mappings of which it could not be told whether they are leaked."""
    left_out: int
    """Leaks that the saved report does not have."""
    lost: bool
    """Something could not be recorded that may have been a leak."""


@dataclass(frozen=True)
class Comparison:
    """What changed, the worst first."""

    old: Run
    new: Run
    leaks: tuple[Compared, ...]

    @property
    def comparable(self) -> bool:
        """Counts of both windows can be held against each other: of whole lives, or of equal lengths."""
        return _comparable(self.old, self.new)

    @property
    def is_worse(self) -> bool:
        """Something is new or grew."""
        return any(one.change.is_worse for one in self.leaks)

    @property
    def is_unsure(self) -> bool:
        """The new run could not be judged wholly, or was too short: what is gone may only be unseen."""
        new = self.new
        is_shorter = not self.comparable and new.seconds < self.old.seconds
        return bool(new.undecided or new.lost or new.left_out or self.old.left_out or is_shorter)

    def of(self, change: Change) -> list[Compared]:
        """Those that changed so."""
        return [one for one in self.leaks if one.change is change]


def run_of(reports: Sequence[Report]) -> Run:
    """The leaks of one run, over all its processes; without those that a suppression accepts."""
    return Run(
        leaks=leaks_of(finding for report in reports for finding in report.findings),
        seconds=max((report.seconds for report in reports), default=0.0),
        ended=all(report.ended_by.by_target for report in reports),
        undecided=sum(report.in_doubt for report in reports),
        left_out=sum(report.left_out.leaks for report in reports),
        lost=any(report.losses.may_hide for report in reports),
    )


def leaks_of(findings: Iterable[Finding]) -> dict[str, Leak]:
    """The leaks among findings by fingerprint, without those that a suppression accepts."""
    leaks: dict[str, Leak] = {}
    for finding in findings:
        if not finding.leak or finding.is_suppressed:
            continue
        name = fingerprint(finding)
        amount = Amount(finding.count, finding.size, finding.bytes_per_minute)
        known = leaks.get(name)
        leaks[name] = _leak(name, finding, amount if known is None else known.amount + amount)
    return leaks


def compare(old: Run, new: Run) -> Comparison:
    """Hold one run against another."""
    compared = []
    for name in {**new.leaks, **old.leaks}:
        before, after = old.leaks.get(name), new.leaks.get(name)
        leak = after or before
        assert leak is not None
        change = _change(before, after, old, new)
        compared.append(
            Compared(leak, change, before.amount if before else Amount(), after.amount if after else Amount())
        )
    order = (Change.NEW, Change.GROWN, Change.SAME, Change.SHRUNK, Change.GONE)
    compared.sort(
        key=lambda one: (order.index(one.change), -one.after.size, -one.before.size, one.leak.place)
    )
    return Comparison(old, new, tuple(compared))


def grew(verdict: Verdict, before: Amount, after: Amount) -> bool:
    """More of it: by number, and of mappings also by bytes; the size of stacks is a setting of the system."""
    return after.count > before.count or (not verdict.of_stacks and after.size > before.size)


def _comparable(old: Run, new: Run) -> bool:
    if old.ended and new.ended:
        return True
    return abs(old.seconds - new.seconds) <= _COMPARABLE * max(old.seconds, new.seconds)


def _change(before: Optional[Leak], after: Optional[Leak], old: Run, new: Run) -> Change:
    if before is None:
        return Change.NEW
    if after is None:
        return Change.GONE
    was, now = before.amount, after.amount
    if not (old.ended and new.ended):
        # How much stands is only a matter of how long the process ran before.
        was_rate, now_rate = was.bytes_per_minute, now.bytes_per_minute
        if was_rate is not None and now_rate is not None:
            if not _differ(_per_minute(was), _per_minute(now), min(old.seconds, new.seconds)):
                return Change.SAME
            return Change.GROWN if now_rate > was_rate else Change.SHRUNK
        if was_rate is not None or now_rate is not None:
            return Change.SHRUNK if now_rate is None else Change.GROWN
    if not _comparable(old, new):
        return Change.SAME
    if grew(after.verdict, was, now):
        return Change.GROWN
    return Change.SHRUNK if grew(after.verdict, now, was) else Change.SAME


def _per_minute(amount: Amount) -> float:
    """How many come in a minute."""
    return (amount.bytes_per_minute or 0.0) * amount.count / amount.size if amount.size else 0.0


def _differ(one: float, other: float, seconds: float) -> bool:
    """Whether two numbers a minute are more apart than chance would have them in a window so long."""
    few, many = sorted((one * seconds / 60, other * seconds / 60))
    return many - few > max(1.0, _STEADY * many, _CHANCE * sqrt(max(few, 0.0)))


def _leak(name: str, finding: Finding, amount: Amount) -> Leak:
    frame = culprit(finding.stack)
    routine = finding.start_routine
    shown = frame or routine
    source = f"{shown.file}:{shown.line}" if shown is not None and shown.file and shown.line else ""
    return Leak(
        fingerprint=name,
        verdict=finding.verdict,
        place=called(frame) if frame is not None else "",
        routine=called(routine) if routine is not None else "",
        source=source,
        amount=amount,
    )
