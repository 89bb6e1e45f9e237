# SPDX-License-Identifier: Apache-2.0
"""Compares two runs leak by leak: which are new, gone, grown or shrunk.

A leak is identified by its fingerprint.  Findings with the same fingerprint are added up, over all processes.
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
"""The rate of a leak in a running process may differ by this part and still count as the same."""
_CHANCE = 3.0
"""A difference of so many standard deviations is no chance; that of a Poisson-distributed number is its
root."""
_COMPARABLE = 0.1
"""Two windows may differ in length by this part, and their counts are still compared directly."""


@dataclass(frozen=True)
class Amount:
    """The amount of one leak in one run."""

    count: int = 0
    size: int = 0
    bytes_per_minute: Optional[float] = None
    """None if it did not grow all through the window."""

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
    """The start routine of its threads; empty if unknown, or if it is not about threads."""
    source: str
    """``file:line`` of the function; empty if unknown."""
    amount: Amount


class Change(Enum):
    """How a leak changed from one run to the other."""

    NEW = "new"
    GROWN = "grown"
    SAME = "same"
    SHRUNK = "shrunk"
    GONE = "gone"

    @property
    def is_worse(self) -> bool:
        """Whether a gate fails."""
        return self in (Change.NEW, Change.GROWN)


@dataclass(frozen=True)
class Compared:
    """A leak in both runs."""

    leak: Leak
    """The leak in the new run; in the old run if it is gone."""
    change: Change
    before: Amount
    after: Amount


@dataclass(frozen=True)
class RunSummary:
    """One side of a comparison."""

    leaks: Mapping[str, Leak]
    seconds: float
    """Length of the longest window."""
    ended: bool
    """All processes were judged at their ends."""
    undecided: int
    """Mappings that may or may not be leaked."""
    left_out: int
    """Leaks that the saved report leaves out."""
    lost: bool
    """Events that may have been part of a leak could not be recorded."""


@dataclass(frozen=True)
class Comparison:
    """The changes, the worst first."""

    old: RunSummary
    new: RunSummary
    leaks: tuple[Compared, ...]

    @property
    def comparable(self) -> bool:
        """Whether the counts can be compared: the processes ended, or the windows are equally long."""
        return _comparable(self.old, self.new)

    @property
    def is_worse(self) -> bool:
        """Whether any leak is new or grew."""
        return any(one.change.is_worse for one in self.leaks)

    @property
    def is_unsure(self) -> bool:
        """Whether the new run was too short or not fully judged, so that a gone leak may be unseen."""
        new = self.new
        is_shorter = not self.comparable and new.seconds < self.old.seconds
        return bool(new.undecided or new.lost or new.left_out or self.old.left_out or is_shorter)

    def of(self, change: Change) -> list[Compared]:
        """The leaks with this change."""
        return [one for one in self.leaks if one.change is change]


def run_of(reports: Sequence[Report]) -> RunSummary:
    """The leaks of one run, over all its processes, without those that a suppression accepts."""
    return RunSummary(
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


def compare(old: RunSummary, new: RunSummary) -> Comparison:
    """Compare two runs."""
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
    """Whether a leak grew: in number or, if it is not of stacks, whose size the system sets, in bytes."""
    return after.count > before.count or (not verdict.of_stacks and after.size > before.size)


def _comparable(old: RunSummary, new: RunSummary) -> bool:
    if old.ended and new.ended:
        return True
    return abs(old.seconds - new.seconds) <= _COMPARABLE * max(old.seconds, new.seconds)


def _change(before: Optional[Leak], after: Optional[Leak], old: RunSummary, new: RunSummary) -> Change:
    if before is None:
        return Change.NEW
    if after is None:
        return Change.GONE
    was, now = before.amount, after.amount
    if not (old.ended and new.ended):
        # In a running process the amount depends on how long it had run before, so compare the rates.
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
    """The number of leaks in a minute."""
    return (amount.bytes_per_minute or 0.0) * amount.count / amount.size if amount.size else 0.0


def _differ(one: float, other: float, seconds: float) -> bool:
    """Whether two rates per minute differ by more than chance, in a window of so many seconds."""
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
