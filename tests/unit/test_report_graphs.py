# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings

import ebpftrace.report
from ebpftrace.model import Frame, Report, Stack
from ebpftrace.report import graphs

VENDOR = Path(ebpftrace.report.__file__).parent / "vendor"
HOSTILE = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)


def leaked_bytes(report: Report) -> int:
    return sum(finding.size for finding in report.findings if finding.fails)


@functools.cache
def marks_of_the_page() -> int:
    return graphs.flamegraph(reports.healthy()).count("<")


def graph_data(page: str) -> dict[str, Any]:
    found = re.search(r"^const report = (.*);$", page, re.MULTILINE)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def test_folded_is_outermost_first_and_weighted_in_bytes() -> None:
    lines = graphs.folded(reports.production()).splitlines()
    assert lines[0] == (
        "app_server;[never-joined-thread];[before_attach];acme::minute_job(void*) " + str(27_840 * 10489856)
    )
    assert lines[1].startswith("app_server;[never-joined-thread];__clone3;start_thread;acme::Timer::run();")
    assert lines[1].endswith(";create_thread;__clone3 " + str(2 * 10489856))
    assert len(lines) == 2


def test_incomplete_stack_says_so_at_its_root() -> None:
    assert graphs.folded(reports.lossy()).startswith("app_server;[orphaned-mapping];[incomplete];acme::Timer")


def test_names_cannot_break_the_folded_format() -> None:
    report = reports.raw_clone(1)
    stack = Stack((Frame("leaf; x 99"), Frame("operator new(unsigned long)")), complete=True)
    report = replace(report, findings=(replace(report.findings[0], stack=stack),))
    assert graphs.folded(report) == (
        "cloner;[abandoned-stack];operator_new(unsigned_long);leaf:_x_99 40960\n"
    )


@HOSTILE
@given(strategies.any_report)
def test_folded_lines_parse_and_no_byte_is_lost(report: Report) -> None:
    total = 0
    for line in graphs.folded(report).split("\n")[:-1]:
        found = re.fullmatch(r"(\S+) (\d+)", line)
        assert found
        total += int(found[2])
    assert total == leaked_bytes(report)


@HOSTILE
@given(strategies.any_report)
def test_speedscope_profile_is_whole(report: Report) -> None:
    document = json.loads(graphs.speedscope(report))
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    (profile,) = document["profiles"]
    assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "bytes", 0)
    assert sum(profile["weights"]) == profile["endValue"] == leaked_bytes(report)
    assert len(profile["samples"]) == len(profile["weights"])
    known = document["shared"]["frames"]
    assert all(0 <= index < len(known) for sample in profile["samples"] for index in sample)
    assert all(set(frame) <= {"name", "file", "line"} and frame["name"] for frame in known)


def test_speedscope_names_frames_with_their_source() -> None:
    document = json.loads(graphs.speedscope(reports.raw_clone(1)))
    known = document["shared"]["frames"]
    (sample,) = document["profiles"][0]["samples"]
    assert [known[index]["name"] for index in sample][-2:] == ["main", "mmap64"]
    assert {"name": "main", "file": "reproducer.c", "line": 27} in known


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=20)
@given(strategies.any_report)
def test_flame_graph_holds_every_byte_and_no_name_leaves_its_string(report: Report) -> None:
    page = graphs.flamegraph(report)
    assert sum(stack["weight"] for stack in graph_data(page)["stacks"]) == leaked_bytes(report)
    assert page.count("<") == marks_of_the_page()


def test_flame_graph_needs_no_network() -> None:
    page = graphs.flamegraph(reports.production())
    assert "default-src 'none'" in page
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert "/*D3*/" not in page
    assert "/*FLAMEGRAPH*/" not in page


def test_a_flame_graph_is_whole_when_it_appears() -> None:
    """The library's setting for this leaves out boxes that are new; how it looks, only a browser shows."""
    page = graphs.flamegraph(reports.production())
    settled = page.index("return transition.call(this, name).duration(0)")
    assert page.index(".transitionDuration(0)") > settled > page.index("d3.selection.prototype.transition =")


def test_names_in_a_flame_graph_are_data() -> None:
    report = reports.raw_clone(1)
    name = "</script><script>alert(1)</script><!--"
    stack = Stack((Frame(name, file="/*FLAMEGRAPH*/"),), complete=True)
    report = replace(report, findings=(replace(report.findings[0], stack=stack),))
    page = graphs.flamegraph(report)
    assert name not in page
    assert graph_data(page)["stacks"][0]["boxes"][-1] == [name, "/*FLAMEGRAPH*/", ""]


def test_a_runaway_recursion_can_be_drawn() -> None:
    report = reports.raw_clone(1)
    stack = Stack(tuple(Frame("again") for _ in range(20_000)), complete=True)
    report = replace(report, findings=(replace(report.findings[0], stack=stack),))
    assert len(graph_data(graphs.flamegraph(report))["stacks"][0]["boxes"]) == 20_001
    assert graphs.folded(report).count("again") == 20_000


def test_third_party_files_are_those_the_readme_names() -> None:
    listed = re.findall(
        r"^\| `(\S+)` .* ([0-9a-f]{64}) \|$", (VENDOR / "README.md").read_text(), re.MULTILINE
    )
    assert {name for name, _ in listed} == {path.name for path in VENDOR.glob("*.js")}
    for name, digest in listed:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
