# SPDX-License-Identifier: Apache-2.0
"""Two runs compared: new, gone, grown, shrunk; and what the windows do not tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.known.comparing import Amount, Change, Leak, RunSummary, compare, run_of
from ebpftrace.model import EndedBy, LeftOut, Report, Verdict
from ebpftrace.report import diff

SCHEMA = json.loads((Path(diff.__file__).parent / "schema" / "diff-1.json").read_text())
counts = st.dictionaries(st.sampled_from([letter * 16 for letter in "abcdef"]), st.integers(1, 9), max_size=6)


def leak(name: str, amount: Amount, verdict: Verdict = Verdict.NEVER_JOINED) -> Leak:
    return Leak(name, verdict, f"make_{name}", "job", "a.c:1", amount)


def run(
    leaks: dict[str, Amount], seconds: float = 10.0, *, ended: bool = True, undecided: int = 0
) -> RunSummary:
    return RunSummary(
        {name: leak(name, of) for name, of in leaks.items()}, seconds, ended, undecided, 0, False
    )


@given(counts, counts)
def test_every_leak_of_both_runs_changes_as_its_number_does(old: dict[str, int], new: dict[str, int]) -> None:
    compared = compare(
        run({name: Amount(number, number) for name, number in old.items()}),
        run({name: Amount(number, number) for name, number in new.items()}),
    )
    assert len(compared.leaks) == len({*old, *new})
    for one in compared.leaks:
        was, now = old.get(one.leak.fingerprint, 0), new.get(one.leak.fingerprint, 0)
        assert (one.before.count, one.after.count) == (was, now)
        if not was:
            assert one.change is Change.NEW
        elif not now:
            assert one.change is Change.GONE
        else:
            order = {True: Change.SAME, now > was: Change.GROWN, now < was: Change.SHRUNK}
            assert one.change is order[True] or was == now
            assert (one.change is Change.GROWN) == (now > was)
            assert (one.change is Change.SHRUNK) == (now < was)
    assert compared.is_worse == any(new[name] > old.get(name, 0) for name in new)
    text, page, document = diff.text(compared), diff.markdown(compared), json.loads(diff.as_json(compared))
    jsonschema.validate(document, SCHEMA)
    assert document["worse"] == compared.is_worse
    assert len(document["leaks"]) == len(compared.leaks)
    for name in {*old, *new}:
        assert f"make_{name}" in text
        assert f"make\\_{name}" in page


@given(counts)
def test_a_run_is_the_same_as_itself(leaks: dict[str, int]) -> None:
    one = run({name: Amount(number, number) for name, number in leaks.items()})
    assert {of.change for of in compare(one, one).leaks} <= {Change.SAME}


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        # One every two seconds, in windows of 30 s: 15 and 14 are the same leak.
        (Amount(15, 150, 300.0), Amount(14, 140, 280.0), Change.SAME),
        (Amount(15, 150, 300.0), Amount(45, 450, 900.0), Change.GROWN),
        (Amount(45, 450, 900.0), Amount(15, 150, 300.0), Change.SHRUNK),
        # Two and three in a window are chance.
        (Amount(2, 20, 40.0), Amount(3, 30, 60.0), Change.SAME),
        # What stood before the trace says how long the process ran, not how much it leaks.
        (Amount(27_000, 270_000, 300.0), Amount(30, 300, 300.0), Change.SAME),
        (Amount(15, 150, None), Amount(45, 450, 900.0), Change.GROWN),
        (Amount(45, 450, 900.0), Amount(45, 450, None), Change.SHRUNK),
        (Amount(5, 50, None), Amount(6, 60, None), Change.GROWN),
    ],
)
def test_of_processes_that_run_on_the_pace_is_compared(before: Amount, after: Amount, change: Change) -> None:
    old, new = run({"a": before}, 30.0, ended=False), run({"a": after}, 30.0, ended=False)
    assert [one.change for one in compare(old, new).leaks] == [change]


def test_windows_of_different_lengths_are_reported_and_their_amounts_not_compared() -> None:
    old = run({"a": Amount(5, 50, None)}, 60.0, ended=False)
    new = run({"a": Amount(9, 90, None)}, 10.0, ended=False)
    compared = compare(old, new)
    assert [one.change for one in compared.leaks] == [Change.SAME]
    assert "the windows differ (1 min and 10.0 s)" in diff.text(compared)


def test_mappings_grow_by_bytes_too_and_stacks_by_number_alone() -> None:
    def changes(verdict: Verdict) -> list[Change]:
        runs = [
            RunSummary({"a": leak("a", Amount(3, size), verdict)}, 1.0, True, 0, 0, False)
            for size in (3000, 9000)
        ]
        return [one.change for one in compare(*runs).leaks]

    assert changes(Verdict.ORPHANED_MAPPING) == [Change.GROWN]
    assert changes(Verdict.NEVER_JOINED) == [Change.SAME]


A, B, C = Amount(1, 1), Amount(1, 1), Amount(2, 2)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({}, {}, "NO LEAK in either run"),
        ({"a": A}, {"a": A}, "NO CHANGE: 1 leak in both runs"),
        ({"a": A}, {}, "FIXED: 1 gone"),
        ({"a": A, "b": B}, {"b": B}, "BETTER: 1 same, 1 gone"),
        ({"a": C}, {"a": A}, "BETTER: 1 shrunk"),
        ({}, {"a": A}, "WORSE: 1 new"),
        ({"a": A}, {"a": C}, "WORSE: 1 grown"),
        ({"a": A}, {"b": A}, "PARTLY: 1 new, 1 gone"),
    ],
)
def test_one_line_says_whether_it_helped(old: dict[str, Amount], new: dict[str, Amount], line: str) -> None:
    compared = compare(run(old), run(new))
    assert diff.summary(compared) == line
    assert diff.text(compared).splitlines()[0] == line
    assert line in diff.markdown(compared)


def test_what_may_only_be_unseen_is_not_called_fixed() -> None:
    old = run({"a": A}, 60.0, ended=False)
    for new in (run({}, undecided=2), run({}, 10.0, ended=False)):
        compared = compare(old, new)
        assert compared.is_unsure
        assert diff.summary(compared).startswith("CANNOT TELL: 1 gone")
    assert "it cannot be told whether they are leaked" in diff.text(compare(old, run({}, undecided=2)))


def ended(report: Report) -> Report:
    return replace(report, ended_by=EndedBy.TARGET_EXIT)


def test_leaks_of_one_fingerprint_are_added_up_over_all_processes() -> None:
    one, two = (ended(reports.raw_clone(number)) for number in (3, 4))
    (held,) = run_of([one, two]).leaks.values()
    assert (held.amount.count, held.amount.size) == (7, 7 * 40960)
    assert held.place == "main"
    assert held.source == "reproducer.c:27"


def test_what_a_saved_report_leaves_out_is_reported() -> None:
    whole = run_of([ended(reports.raw_clone())])
    cut = run_of([replace(ended(reports.healthy()), left_out=LeftOut(findings=2, leaks=1))])
    compared = compare(whole, cut)
    assert compared.is_unsure
    assert "new run: the saved report leaves out 1 leak" in diff.text(compared)


def test_names_of_the_target_are_text_in_every_form() -> None:
    hostile = replace(leak("a", A), place="\x1b[2J|<b>`x`", source="a\n.c:1")
    compared = compare(run({}), RunSummary({"a": hostile}, 1.0, True, 0, 0, False))
    assert "\x1b" not in diff.text(compared)
    page = diff.markdown(compared)
    assert "\x1b" not in page
    assert "\\<b\\>" in page
    assert page.count("\n") == diff.markdown(compare(run({}), run({"a": A}))).count("\n")
