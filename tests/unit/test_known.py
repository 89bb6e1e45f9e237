# SPDX-License-Identifier: Apache-2.0
"""Suppressions, baselines and what they accept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebpftrace.cli.gate import Floor, Gate
from ebpftrace.fingerprint import fingerprint
from ebpftrace.known import baseline
from ebpftrace.known.acceptance import Acceptance
from ebpftrace.known.comparing import Amount
from ebpftrace.known.suppressions import BadSuppression, first_match, parse
from ebpftrace.model import AcceptedBy, EndedBy, Finding, Report
from ebpftrace.report import terminal
from ebpftrace.report.view import View

THREADS = reports.never_joined_in_window(3)
MAPPING = reports.lossy().findings[0]


@pytest.mark.parametrize(
    ("rule", "finding", "matches"),
    [
        ("thread:acme::minute_job", THREADS, True),
        ("thread:acme::minute_job(void\\*)", THREADS, False),
        ("thread:acme::minute_job(void[*])", THREADS, True),
        ("thread:function=*on_minute*", THREADS, True),
        ("thread:*ON_MINUTE*", THREADS, False),
        ("thread:on_minute", THREADS, False),
        ("thread:timer.cpp", THREADS, True),
        ("thread:file=src/acme/*", THREADS, True),
        ("any:module=app_server", THREADS, True),
        ("any:module=libc.so", THREADS, True),
        ("any:module=libm.so", THREADS, False),
        ("any:name=minute-job", THREADS, True),
        ("any:file=minute-job", THREADS, False),
        ("mapping:*", THREADS, False),
        ("mapping:*", MAPPING, True),
        ("thread:*", MAPPING, False),
        (f"any:fingerprint={fingerprint(THREADS)}", THREADS, True),
        (f"any:{fingerprint(THREADS)[:6]}*", THREADS, True),
        (f"any:fingerprint={fingerprint(THREADS)}", MAPPING, False),
    ],
)
def test_a_suppression_names_what_it_accepts(rule: str, finding: Finding, matches: bool) -> None:
    assert (first_match(parse(rule), finding) is not None) is matches


def test_comments_and_empty_lines_are_no_suppressions() -> None:
    rules = parse("# known\n\n  thread:pool_*  \n#any:*\nany: fingerprint = 0123* \n")
    assert [(rule.text, rule.line) for rule in rules] == [("thread:pool_*", 3), ("any:fingerprint=0123*", 5)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("thread", "line 1: 'thread' does not begin with thread:, mapping: or any:"),
        ("\nleak:foo", "line 2: 'leak:foo' does not begin with"),
        ("any:", "line 1: 'any:' has no pattern"),
        ("any:function=", "has no pattern"),
        ("any:" + "x" * 5000, "longer than 4096"),
        ("any\udcff:x", "does not begin with"),
    ],
)
def test_a_bad_line_is_named(text: str, why: str) -> None:
    with pytest.raises(BadSuppression) as caught:
        parse(text)
    assert why in str(caught.value)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60, deadline=None)
@given(st.text(max_size=40), strategies.findings)
def test_any_line_is_a_suppression_or_refused(text: str, finding: Finding) -> None:
    try:
        rules = parse(text)
    except BadSuppression:
        return
    first_match(rules, finding)


def accepting(rules: str = "", known: dict[str, Amount] | None = None) -> Acceptance:
    return Acceptance([(rule, "file") for rule in parse(rules)], known)


def report(*findings: Finding, ended_by: EndedBy = EndedBy.TARGET_EXIT) -> Report:
    undecided = sum(one.count for one in findings if one.undecided)
    return replace(reports.production(), findings=findings, ended_by=ended_by, undecided=undecided)


def status(*judged: Report) -> int:
    gate = Gate(Floor(), 3)
    for number, one in enumerate(judged):
        gate.add(number, one)
    return gate.status(None)


def test_what_a_suppression_accepts_does_not_fail_the_gate() -> None:
    acceptance = accepting("thread:*minute_job*\nany:never")
    found = acceptance.accept(report(THREADS), 1)
    assert found.findings[0].is_suppressed
    assert status(found) == 0
    assert [(one.suppression.text, one.file) for one in acceptance.unused] == [("any:never", "file")]
    text = terminal.render(found, View())
    assert text.startswith("No new leak seen")
    assert "Accepted: 3 mappings, 30732 KiB, in 1 finding (1 suppressed)" in text
    assert "suppressed by thread:*minute_job*" in text


def test_what_cannot_be_reported_can_be_suppressed_too() -> None:
    doubtful = replace(THREADS, leak=False, undecided=True)
    assert status(report(doubtful)) == 4
    assert status(accepting("thread:*").accept(report(doubtful), 1)) == 0
    assert status(accepting("mapping:*").accept(report(doubtful), 1)) == 4


def test_no_leak_is_never_accepted() -> None:
    found = accepting("any:*").accept(report(reports.stack_cache()), 1)
    assert found.findings[0].accepted is None


def known_of(*findings: Finding) -> dict[str, Amount]:
    return dict(baseline.parse(baseline.render(findings)))


def test_of_a_baseline_only_what_is_new_or_grew_fails() -> None:
    known = known_of(THREADS)
    assert known == {fingerprint(THREADS): Amount(3, THREADS.size)}
    same = accepting(known=known).accept(report(THREADS), 1)
    assert same.findings[0].accepted is not None
    assert same.findings[0].accepted.by is AcceptedBy.BASELINE
    assert status(same) == 0
    assert status(accepting(known=known).accept(report(reports.never_joined_in_window(2)), 1)) == 0
    grown = accepting(known=known).accept(report(reports.never_joined_in_window(4)), 1)
    assert status(grown) == 3
    assert any(
        "the baseline accepts 3 mappings of these; there are 4" in why for why in grown.findings[0].evidence
    )
    assert status(accepting(known=known).accept(report(THREADS, MAPPING), 1)) == 3
    assert status(accepting(known={}).accept(report(THREADS), 1)) == 3


def test_a_baseline_counts_over_all_processes_and_an_interval_only_once() -> None:
    known = known_of(THREADS)
    acceptance = accepting(known=known)
    early = report(reports.never_joined_in_window(2), ended_by=EndedBy.INTERVAL)
    assert status(acceptance.accept(early, 1), acceptance.accept(early, 1)) == 0
    assert status(acceptance.accept(report(THREADS), 1)) == 0
    assert status(acceptance.accept(report(reports.never_joined_in_window(1)), 2)) == 3


def test_a_baseline_leaves_out_what_is_suppressed_or_no_leak() -> None:
    found = accepting("thread:*").accept(report(THREADS, MAPPING, reports.stack_cache()), 1)
    assert set(known_of(*found.findings)) == {fingerprint(MAPPING)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "its schema is not"),
        ('{"schema": "ebpftrace.baseline/1"}', "it has no leaks"),
        ('{"schema": "ebpftrace.baseline/1", "leaks": [1]}', "a leak needs a fingerprint"),
        (
            '{"schema": "ebpftrace.baseline/1", "leaks": [{"fingerprint": "a", "count": true, "bytes": 1}]}',
            "needs",
        ),
    ],
)
def test_a_bad_baseline_is_refused(text: str, why: str) -> None:
    with pytest.raises(baseline.BadBaseline) as caught:
        baseline.parse(text)
    assert why in str(caught.value)


def test_a_baseline_is_as_its_schema_says() -> None:
    schema = json.loads((Path(terminal.__file__).parent / "schema" / "baseline-1.json").read_text())
    jsonschema.validate(json.loads(baseline.render((THREADS, MAPPING))), schema)


def test_a_baseline_is_a_leak_a_line_in_a_steady_order() -> None:
    one, other = baseline.render((THREADS, MAPPING)), baseline.render((MAPPING, THREADS))
    assert one == other
    assert sum('"fingerprint"' in line for line in one.splitlines()) == 2
