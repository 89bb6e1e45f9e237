# SPDX-License-Identifier: Apache-2.0
"""Marks the findings of a run's reports that suppressions or a baseline accept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Optional

from ebpftrace.fingerprint import fingerprint
from ebpftrace.known.comparing import Amount, grew
from ebpftrace.known.suppressions import Suppression, first_match
from ebpftrace.model import Accepted, AcceptedBy, Finding, Report
from ebpftrace.text import plural


@dataclass(frozen=True)
class Unused:
    """A suppression that matched nothing."""

    suppression: Suppression
    file: str


class Acceptance:
    """Marks accepted findings in the reports of one run."""

    def __init__(
        self, suppressions: Sequence[tuple[Suppression, str]], baseline: Optional[Mapping[str, Amount]]
    ) -> None:
        """``suppressions`` come with the name of their file; ``baseline`` is None if there is none."""
        self._suppressions = suppressions
        self._baseline = baseline or {}
        self._used: set[Suppression] = set()
        self._so_far: dict[str, dict[Hashable, Amount]] = defaultdict(dict)
        """For each fingerprint in the baseline: the amount in the last report of each process."""

    def accept(self, report: Report, target: Hashable) -> Report:
        """Return the report with accepted findings marked; ``target`` identifies the process."""
        if not self._suppressions and not self._baseline:
            return report
        of_this: dict[str, Amount] = defaultdict(Amount)
        findings = tuple(self._accepted(finding, target, of_this) for finding in report.findings)
        return replace(report, findings=findings)

    @property
    def unused(self) -> list[Unused]:
        """The suppressions that matched nothing so far, in the order of their files."""
        return [Unused(one, file) for one, file in self._suppressions if one not in self._used]

    def _accepted(self, finding: Finding, target: Hashable, of_this: dict[str, Amount]) -> Finding:
        if not finding.leak and not finding.undecided:
            return finding
        match = first_match([one for one, _ in self._suppressions], finding)
        if match is not None:
            self._used.add(match)
            return replace(finding, accepted=Accepted(AcceptedBy.SUPPRESSION, match.text))
        if not finding.leak or not self._baseline:
            return finding
        name = fingerprint(finding)
        known = self._baseline.get(name)
        if known is None:
            return finding
        of_this[name] += Amount(finding.count, finding.size)
        self._so_far[name][target] = of_this[name]
        all_of_it = sum(self._so_far[name].values(), Amount())
        if not grew(finding.verdict, known, all_of_it):
            return replace(finding, accepted=Accepted(AcceptedBy.BASELINE, _number(known)))
        line = f"the baseline accepts {_number(known)} of these; there are {all_of_it.count:,}"
        return replace(finding, evidence=(*finding.evidence, line))


def _number(amount: Amount) -> str:
    return plural(amount.count, "mapping")
