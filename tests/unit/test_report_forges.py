# SPDX-License-Identifier: Apache-2.0
"""What forges and other programs read: JUnit XML, SARIF, annotations, pprof and a timeline."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifSchema

from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import Accepted, AcceptedBy, LeftOut, Report
from ebpftrace.report import annotations, junit, pprof, sarif, timeline
from ebpftrace.report.mmap_leaks_json import render as as_json
from ebpftrace.report.places import Place, Repository, repository_of
from ebpftrace.report.reading import read
from ebpftrace.report.view import View, select

SUPPRESSED = Accepted(AcceptedBy.SUPPRESSION, "thread:*")
IN_BASELINE = Accepted(AcceptedBy.BASELINE, "2 mappings")
NOWHERE = Repository("/nowhere", lambda _: False)
SOURCES = Repository("/repo", lambda path: path == "/repo/src/acme/timer.cpp")
LEAK = reports.never_joined_in_window()
DOUBTFUL = replace(LEAK, leak=False, undecided=True)
MANY = st.lists(strategies.any_report, min_size=1, max_size=2)
few = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=15, deadline=None)


def report(*findings: Any, **others: Any) -> Report:
    undecided = sum(one.count for one in findings if one.undecided)
    return replace(reports.production(), findings=findings, undecided=undecided, **others)


def as_saved(one: Report) -> Report:
    (held,) = read("".join(as_json(one, View(top=1000)))).reports
    return held


@pytest.mark.parametrize("render", [junit.render, pprof.render, timeline.render])
def test_a_saved_report_gives_the_same_file(render: Any) -> None:
    for whole in (reports.production(), reports.raw_clone(), reports.lossy()):
        ordered = replace(whole, findings=select(whole, View(top=1000)).shown)
        assert render([as_saved(whole)]) == render([ordered])


# --- JUnit ------------------------------------------------------------------------


def test_each_leak_is_a_failed_test_and_a_doubt_an_error() -> None:
    accepted = replace(LEAK, accepted=SUPPRESSED)
    suite = ElementTree.fromstring(junit.render([report(LEAK, accepted, DOUBTFUL)]))[0]
    assert (suite.get("failures"), suite.get("skipped"), suite.get("errors")) == ("1", "1", "1")
    assert suite.get("tests") == str(len(suite)) == "3"
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message", "").startswith("never-joined-thread: 2 stacks")
    assert "acme::Timer::on_minute" in (failure.text or "")
    skipped, error = suite.find("testcase/skipped"), suite.find("testcase/error")
    assert skipped is not None
    assert "suppression: thread:*" in skipped.get("message", "")
    assert error is not None
    assert "cannot be told" in error.get("message", "")


def test_without_a_leak_a_test_passes() -> None:
    root = ElementTree.fromstring(junit.render([reports.healthy(), reports.healthy()]))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "0", "0")
    assert [len(case) for case in root.iter("testcase")] == [0, 0, 0, 0]


def test_a_loss_or_what_is_left_out_is_an_error() -> None:
    for one in (reports.lossy(), replace(reports.healthy(), left_out=LeftOut(1, 1))):
        assert ElementTree.fromstring(junit.render([one])).get("errors") == "1"


@few
@given(MANY)
def test_junit_is_xml_whose_counts_are_true(many: list[Report]) -> None:
    root = ElementTree.fromstring(junit.render(many))
    for of in (root, *root):
        cases = list(of.iter("testcase"))
        assert of.get("tests") == str(len(cases))
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert of.get(count) == str(sum(case.find(tag) is not None for case in cases))


# --- SARIF --------------------------------------------------------------------------


def results(log: str) -> Iterator[dict[str, Any]]:
    (run,) = json.loads(log)["runs"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        yield result


@few
@given(MANY)
def test_sarif_has_every_leak_and_doubt_in_its_form(many: list[Report]) -> None:
    log = sarif.render(many, NOWHERE)
    SarifSchema.model_validate_json(log)
    found = list(results(log))
    shown = [one for of in many for one in of.findings if one.leak or one.undecided]
    assert [one["partialFingerprints"]["ebpftrace/v1"] for one in found] == [
        fingerprint(one) for one in shown
    ]
    for result, finding in zip(found, shown):
        assert (result["level"] == "error") == finding.leak
        assert ("suppressions" in result) == finding.is_suppressed
        for location in result["locations"]:
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert urlsplit(uri).scheme in ("", "file")
            assert re.fullmatch("[!-~]+", uri)


@pytest.mark.parametrize("wrong", [{"level": "fatal"}, {"occurrenceCount": 0}, {"unknown": 1}])
def test_the_schema_refuses_what_is_no_sarif(wrong: dict[str, Any]) -> None:
    log = json.loads(sarif.render([report(LEAK)], NOWHERE))
    log["runs"][0]["results"][0].update(wrong)
    with pytest.raises(ValidationError):
        SarifSchema.model_validate(log)


def test_sarif_names_the_line_relative_to_the_repository() -> None:
    log = sarif.render([report(LEAK, replace(LEAK, accepted=IN_BASELINE))], SOURCES)
    first, second = results(log)
    location = first["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "src/acme/timer.cpp", "uriBaseId": "SRCROOT"}
    assert location["region"] == {"startLine": 118}
    assert second["baselineState"] == "unchanged"
    (run,) = json.loads(log)["runs"]
    assert run["originalUriBaseIds"]["SRCROOT"]["uri"] == "file:///repo/"


# --- annotations --------------------------------------------------------------------


def test_annotations_point_at_the_line_of_a_leak() -> None:
    text = annotations.render([report(LEAK, DOUBTFUL, replace(LEAK, accepted=SUPPRESSED))], SOURCES)
    error, warning, doubt = text.splitlines()
    assert error.startswith(
        "::error title=never-joined-thread in app_server (PID 31108),file=src/acme/timer.cpp,line=118::"
    )
    assert warning.startswith("::warning ")
    assert "cannot be told" in doubt
    assert annotations.render([reports.healthy()], SOURCES) == ""


@few
@given(MANY)
def test_a_name_of_the_target_makes_no_command(many: list[Report]) -> None:
    for line in annotations.render(many, NOWHERE).split("\n")[:-1]:
        assert re.match(r"::(error|warning) title=[^:,\r]+::[^\r]*$", line)


# --- where the sources are ------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "below"),
    [
        ("/repo/src/a.c", "src/a.c"),
        ("src/a.c", "src/a.c"),
        ("./src/../src/a.c", "src/a.c"),
        ("/home/runner/work/x/src/a.c", "src/a.c"),
        ("/elsewhere/a.c", None),
        ("a.c", None),
        ("../../etc/passwd", None),
        ("/usr/include/stdio.h", None),
        ("", None),
    ],
)
def test_a_source_is_named_by_its_place_in_the_repository(file: str, below: str | None) -> None:
    repository = Repository("/repo", {"/repo/src/a.c", "/repo/etc/passwd", "/etc/passwd"}.__contains__)
    expected = "etc/passwd" if file == "../../etc/passwd" else below
    assert repository.relative(file) == expected


def test_without_sources_the_users_own_line_is_named_all_the_same() -> None:
    assert NOWHERE.place(LEAK) == Place("src/acme/timer.hpp", 41, False)


def test_the_repository_is_what_git_says(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert repository_of(str(inner)) == str(inner.resolve())
    (tmp_path / ".git").mkdir()
    assert repository_of(str(inner)) == str(tmp_path.resolve())


# --- pprof ----------------------------------------------------------------------------


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: numbers, or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2
            length = varint()
            yield key >> 3, data[at : at + length]
            at += length


def packed(data: bytes) -> list[int]:
    return [value for _, value in fields(b"".join(b"\x08" + part for part in _varints(data)))]


def _varints(data: bytes) -> Iterator[bytes]:
    begin = 0
    for at, byte in enumerate(data):
        if byte < 0x80:
            yield data[begin : at + 1]
            begin = at + 1


class Decoded:
    """A profile, read by the definitions of profile.proto."""

    def __init__(self, profile: bytes) -> None:
        members: dict[int, list[Any]] = {}
        for number, value in fields(gzip.decompress(profile)):
            members.setdefault(number, []).append(value)
        self.strings = [text.decode("utf-8") for text in members[6]]
        self.types = [self.strings[dict(fields(one))[1]] for one in members[1]]
        self.default = self.strings[members[14][0]]
        self.functions = {of[1]: of for of in map(dict, map(fields, members.get(5, [])))}
        mappings = map(dict, map(fields, members.get(3, [])))
        self.mappings = {of[1]: self.strings[of.get(5, 0)] for of in mappings}
        self.locations = {of[1]: of for of in map(dict, map(fields, members.get(4, [])))}
        self.samples = [list(fields(one)) for one in members.get(2, [])]

    def values(self) -> list[list[int]]:
        return [packed(value) for sample in self.samples for field, value in sample if field == 2]

    def stacks(self) -> list[list[str]]:
        return [
            [self.strings[self.functions[dict(fields(self.locations[at][4]))[1]][2]] for at in packed(value)]
            for sample in self.samples
            for field, value in sample
            if field == 1
        ]


def test_a_profile_has_counts_and_bytes_by_stack() -> None:
    profile = Decoded(pprof.render([report(LEAK, reports.stack_cache()), reports.raw_clone(3)]))
    assert profile.strings[0] == ""
    assert profile.types == ["leaked_mappings", "leaked_space"]
    assert profile.default == "leaked_space"
    assert profile.values() == [[2, LEAK.size], [3, 3 * 40960]]
    assert next(iter(profile.mappings.values())) == reports.production().target.exe
    assert profile.stacks()[1] == [frame.function for frame in reports.raw_clone().findings[0].stack.frames]


@few
@given(MANY)
def test_a_profile_is_whole_and_loses_no_leaked_byte(many: list[Report]) -> None:
    profile = Decoded(pprof.render(many))
    leaks = [one for of in many for one in of.findings if one.fails and one.size]
    assert profile.values() == [[one.count, one.size] for one in leaks]
    assert all(profile.stacks())
    for location in profile.locations.values():
        assert location.get(2, 0) in {0, *profile.mappings}


# --- the timeline ----------------------------------------------------------------------


def test_a_timeline_has_threads_mappings_findings_and_memory() -> None:
    events = json.loads(timeline.render([reports.production()]))["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tracks == {
        "minute-job",
        "worker-3",
        "leak: never-joined-thread",
        "no leak: stack-cache",
        "no leak: malloc-arena",
    }
    counters = {(event["name"], event["args"]["bytes"]) for event in events if event["ph"] == "C"}
    assert len(counters) == 4
    assert {name for name, _ in counters} == {"VIRT", "RSS"}
    instants = [event["name"] for event in events if event["ph"] == "i"]
    assert instants.count("exited") == 3
    (slice_,) = [event for event in events if event.get("tid") == 31152 and event["ph"] == "X"]
    assert slice_["args"]["range"] == "0x7faae0e49000-0x7faae184a000"


@few
@given(MANY)
def test_slices_of_a_track_nest_and_lie_in_the_window(many: list[Report]) -> None:
    events = json.loads(timeline.render(many))["traceEvents"]
    for event in events:
        assert event["ph"] in "XiCM"
        assert isinstance(event["pid"], int)
    ends = {one.target.pid: one.clock.wall_ns(one.ended_at) // 1000 for one in many}
    for event in events:
        if event["ph"] != "M":
            assert isinstance(event["ts"], int)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] + event["dur"] == ends[event["pid"]]


def test_the_timeline_of_a_flood_is_bounded_and_says_so() -> None:
    events = json.loads(timeline.render([reports.raw_clone(20_010)]))["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 20_001
    assert any("only 20,000 mappings are drawn" in event["name"] for event in events)
