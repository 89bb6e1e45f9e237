# SPDX-License-Identifier: Apache-2.0
"""Workflow commands that GitHub shows as annotations at lines of a pull request.

https://docs.github.com/en/actions/reference/workflow-commands-for-github-actions:
``::error file=,line=,title=::text``, with percent signs and line ends escaped, in properties commas and
colons too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import Finding, Report
from ebpftrace.report import words
from ebpftrace.report.places import Repository
from ebpftrace.text import escape

_IN_TEXT = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_IN_PROPERTY = {**_IN_TEXT, ":": "%3A", ",": "%2C"}


def render(reports: Sequence[Report], repository: Repository) -> str:
    """A command a line; empty where there is nothing to show."""
    return "".join(f"{line}\n" for report in reports for line in _commands(report, repository))


def _commands(report: Report, repository: Repository) -> Iterator[str]:
    for finding in report.findings:
        if finding.fails:
            yield _command("error", finding, report, repository)
        elif finding.undecided and finding.accepted is None:
            yield _command("warning", finding, report, repository)
    for doubt in words.doubts(report):
        yield f"::warning title={_escaped(words.process(report), _IN_PROPERTY)}::{_escaped(doubt, _IN_TEXT)}"


def _command(level: str, finding: Finding, report: Report, repository: Repository) -> str:
    properties = {"title": f"{finding.verdict.value} in {words.process(report)}"}
    place = repository.place(finding)
    if place is not None and place.in_repository:
        properties["file"] = place.file
        if place.line:
            properties["line"] = str(place.line)
    listed = ",".join(f"{name}={_escaped(value, _IN_PROPERTY)}" for name, value in properties.items())
    reasons = [escape(one) for one in finding.evidence]
    advice = [escape(finding.advice)] if finding.advice else []
    text = "\n".join((words.sentence(finding), *reasons, *advice, f"fingerprint {fingerprint(finding)}"))
    return f"::{level} {listed}::{_escaped(text, _IN_TEXT)}"


def _escaped(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(letter, letter) for letter in text)
