# SPDX-License-Identifier: Apache-2.0
"""A report that was saved as JSON renders as the one that was traced."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import report_strategies as strategies
import reports
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import Finding, Orphan, Report, Thread, ThreadTotal
from ebpftrace.report import graphs, mmap_leaks_json, terminal
from ebpftrace.report.headline import verdict_lines
from ebpftrace.report.reading import BadReport, read
from ebpftrace.report.view import View

ALL = View(top=1000)
FORMS: dict[str, Callable[[Report], str]] = {
    "text": lambda report: terminal.render(report, ALL),
    "json": lambda report: "".join(mmap_leaks_json.render(report, ALL)),
    "folded": graphs.folded,
    "speedscope": graphs.speedscope,
    "flamegraph": graphs.flamegraph,
}
REAL = {
    "production": reports.production(),
    "raw clone": reports.raw_clone(),
    "healthy": reports.healthy(),
    "lossy": reports.lossy(),
}


def saved(report: Report, view: View = ALL) -> str:
    return "".join(mmap_leaks_json.render(report, view))


def read_one(text: str) -> Report:
    (report,) = read(text).reports
    return report


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REAL)
def test_a_saved_report_renders_as_it_did(name: str, form: str) -> None:
    report = REAL[name]
    assert FORMS[form](read_one(saved(report))) == FORMS[form](report)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30, deadline=None)
@given(strategies.any_report)
def test_reading_and_writing_again_changes_nothing(report: Report) -> None:
    text = saved(report)
    assert saved(read_one(text)) == text


def reported_whole(report: Report) -> Report:
    """The same with times as JSON has them, to the microsecond, and threads in the order of the table."""

    def moment(value: int | None) -> int | None:
        return None if value is None else value // 1000 * 1000

    def owner(thread: Thread | None) -> Thread | None:
        if thread is None:
            return None
        started_at = thread.id.started_at // 1000 * 1000
        return replace(
            thread, id=thread.id._replace(started_at=started_at), exited_at=moment(thread.exited_at)
        )

    def orphan(one: Orphan) -> Orphan:
        outstanding = one.outstanding
        mapping = outstanding.mapping._replace(made_at=moment(outstanding.mapping.made_at))
        return one._replace(outstanding=outstanding._replace(mapping=mapping, owner=owner(outstanding.owner)))

    findings = tuple(
        replace(finding, orphans=tuple(map(orphan, finding.orphans))) for finding in report.findings
    )
    return replace(report, findings=findings)


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], max_examples=15, deadline=None
)
@given(strategies.any_report, st.sampled_from(("text", "folded", "speedscope")))
def test_any_saved_report_renders_as_it_did(report: Report, form: str) -> None:
    report = reported_whole(report)
    text = saved(report)
    # A backslash and x in a name read as the byte that they would stand for.
    assume("\\\\x" not in text and "\\\\u" not in text)
    owners = {one.outstanding.owner for finding in report.findings for one in finding.orphans}
    # Threads of one tid and one time are one thread once they are saved.
    assume(len({owner.id for owner in owners if owner}) == len([owner for owner in owners if owner]))
    assert FORMS[form](read_one(text)) == FORMS[form](report)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40, deadline=None)
@given(strategies.findings)
def test_a_saved_finding_has_the_same_fingerprint(finding: Finding) -> None:
    text = saved(replace(reports.healthy(), findings=(finding,)))
    reported = json.loads(text)["findings"][0]["fingerprint"]
    assert reported == fingerprint(read_one(text).findings[0])


def test_what_top_left_out_stays_counted() -> None:
    report = read_one(saved(reports.production(), View(top=1)))
    assert (report.left_out.findings, report.left_out.leaks) == (2, 1)
    assert "Not shown: 2 findings" in terminal.render(report, View())
    again = json.loads(saved(report))["hidden"]
    assert (again["findings"], again["leaks"]) == (2, 1)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=25, deadline=None)
@given(strategies.any_report, st.integers(1, 4), st.integers(1, 3))
def test_a_report_without_most_mappings_says_the_same(report: Report, most: int, again: int) -> None:
    """Counts, sizes and the headline of a file shortened by --top, and of one shortened twice."""
    report = reported_whole(report)
    whole = read_one(saved(report))
    short = read_one(saved(whole, replace(ALL, most_mappings=most)))
    for held, limit in ((short, most), (read_one(saved(short, replace(ALL, most_mappings=again))), again)):
        for left, finding in zip(held.findings, whole.findings):
            assert len(left.orphans) <= limit
            assert (left.count, left.size, left.rss, left.swap, left.older) == (
                finding.count, finding.size, finding.rss, finding.swap, finding.older,
            )  # fmt: skip
        assert verdict_lines(held) == verdict_lines(whole)


def test_the_oldest_and_the_newest_mappings_are_kept() -> None:
    report = reports.raw_clone(9)
    orphans = read_one(saved(report)).findings[0].orphans
    short = read_one(saved(report, replace(ALL, most_mappings=3)))
    assert short.findings[0].orphans == (*orphans[:2], orphans[-1])
    page = terminal.render(short, View())
    assert "not known of 6 mappings that the saved report leaves out (--top)" in page
    assert "and 6 more" in page


def test_several_lines_and_a_document_of_several_processes_are_read() -> None:
    from ebpftrace.model import Processes

    both = (reports.production(), replace(reports.raw_clone(), is_child=True))
    assert len(read("".join(map(saved, both))).reports) == 2
    document = "".join(mmap_leaks_json.render_all(both, Processes(3, 2, 1), ALL))
    held = read(document)
    assert [report.is_child for report in held.reports] == [False, True]
    assert held.processes == Processes(3, 2, 1)
    pretty = json.dumps(json.loads(document), indent=2)
    assert read(pretty) == held


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is no report in it"),
        ("nonsense", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"schema": "ebpftrace.maps/1"}', "not of the schema"),
        ('{"schema": "ebpftrace.mmap-leaks/1"}', "does not fit the schema: it has no"),
        ("[]", "not of the schema"),
    ],
)
def test_what_is_no_report_is_named(text: str, why: str) -> None:
    with pytest.raises(BadReport, match=why):
        read(text)


GOOD: dict[str, Any] = json.loads(saved(reports.lossy()))


def spoiled(value: Any, path: list[int], by: Any) -> Any:
    """``value`` with one of its parts replaced, which ``path`` chooses."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return by
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    chosen = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[chosen] = spoiled(value[chosen], path[1:], by)
    return copy


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=7),
    st.sampled_from([None, True, 7, -1, 1e300, 1 << 70, "", "x", [], {}, [None], {"a": 1}]),
)
def test_a_damaged_report_is_read_or_refused_and_never_breaks(path: list[int], by: Any) -> None:
    try:
        held = read(json.dumps(spoiled(GOOD, path, by)))
    except BadReport:
        return
    for report in held.reports:
        for form in ("text", "json", "folded", "speedscope"):
            FORMS[form](report)


def test_the_table_of_threads_is_whole() -> None:
    report = reports.production()
    totals: list[ThreadTotal] = list(read_one(saved(report)).threads)
    assert [total.size for total in totals] == sorted((total.size for total in report.threads), reverse=True)
