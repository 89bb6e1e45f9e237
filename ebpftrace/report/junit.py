# SPDX-License-Identifier: Apache-2.0
"""JUnit XML: each process a suite, each leak a failed test; what could not be judged is an error.

The format has no standard; this is what Jenkins, GitLab and GitHub's reporters read (testsuites, testsuite,
testcase, failure, error, skipped).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from xml.etree import ElementTree

from ebpftrace import frames
from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import Finding, Report
from ebpftrace.report import words
from ebpftrace.text import escape

_CLASS = "ebpftrace.mmap-leaks"
_JUDGED = "every thread and mapping could be judged"


def render(reports: Sequence[Report]) -> str:
    """The document."""
    root = ElementTree.Element("testsuites", name="ebpftrace mmap-leaks")
    suites = [_suite(report, number) for number, report in enumerate(reports)]
    root.extend(suites)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _suite(report: Report, number: int) -> ElementTree.Element:
    comm = escape(report.target.comm) or "?"
    ended = report.clock.wall_ns(report.ended_at) / 1e9
    suite = ElementTree.Element(
        "testsuite",
        name=words.process(report),
        id=str(number),
        time=f"{report.seconds:.3f}",
        timestamp=datetime.fromtimestamp(ended - report.seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
    )
    cases = [_leak(finding, report, comm) for finding in report.findings if _is_case(finding)]
    if not any(finding.fails for finding in report.findings):
        cases.append(_case(comm, f"no leak, {words.window(report)}"))
    judged = _case(comm, _JUDGED)
    doubts = words.doubts(report)
    if doubts:
        ElementTree.SubElement(judged, "error", type="not-judged", message="; ".join(doubts))
    cases.append(judged)
    suite.set("tests", str(len(cases)))
    for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(sum(case.find(tag) is not None for case in cases)))
    suite.extend(cases)
    return suite


def _is_case(finding: Finding) -> bool:
    return finding.leak or finding.accepted is not None


def _leak(finding: Finding, report: Report, comm: str) -> ElementTree.Element:
    frame = frames.culprit(finding.stack) or finding.start_routine
    where = f" at {frames.name(frame)}" if frame is not None else ""
    case = _case(comm, f"{finding.verdict.value}{where} ({fingerprint(finding)})")
    if finding.accepted is not None:
        why = f"{finding.accepted.by.value}: {escape(finding.accepted.why)}"
        ElementTree.SubElement(case, "skipped", message=f"{words.sentence(finding)}; {why}")
        return case
    failure = ElementTree.SubElement(
        case, "failure", type=finding.verdict.value, message=words.sentence(finding)
    )
    failure.text = "\n".join(words.lines(finding, report))
    return case


def _case(comm: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", classname=f"{_CLASS}.{comm}", name=name, time="0")
