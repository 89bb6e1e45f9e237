# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime, timedelta
from importlib import resources
from typing import Any

import jsonschema
import pytest
import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings

from ebpftrace.model import CommandEnd, Processes, Report, StackSource, Verdict
from ebpftrace.report import json_parts, mmap_leaks_json
from ebpftrace.report.view import View

SCHEMA = json.loads((resources.files("ebpftrace.report") / "schema" / "mmap-leaks-1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)
EVERYTHING = View(top=1000)


def undescribed(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Members of ``value`` that the schema does not describe."""
    for choice in schema.get("anyOf", ()):
        if choice != {"type": "null"}:
            schema = choice
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if isinstance(value, list):
        return [name for item in value for name in undescribed(item, schema["items"], path + "[]")]
    if not isinstance(value, dict):
        return []
    known = schema["properties"]
    missing = [f"{path}.{name}" for name in value if name not in known]
    inner = [undescribed(value[name], known[name], f"{path}.{name}") for name in value if name in known]
    return missing + [name for names in inner for name in names]


def document(report: Report, view: View) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads("".join(mmap_leaks_json.render(report, view)))
    return loaded


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(strategies.any_report)
def test_any_report_is_valid_and_wholly_described_by_the_schema(report: Report) -> None:
    text = "".join(mmap_leaks_json.render(report, EVERYTHING))
    assert text.endswith("\n")
    assert text.count("\n") == 1
    text.encode("ascii")
    loaded = json.loads(text)
    # Lone surrogates survive Python's own parser but are no Unicode text.
    json.dumps(loaded, ensure_ascii=False).encode("utf-8")
    VALIDATOR.validate(loaded)
    assert undescribed(loaded, SCHEMA) == []
    assert sum(finding["bytes"] for finding in loaded["findings"]) == sum(f.size for f in report.findings)


def test_schema_is_itself_valid_and_can_refuse() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    good = document(reports.production(), EVERYTHING)
    for spoil in (
        {"schema": "ebpftrace.mmap-leaks/2"},
        {"losses": {}},
        {"window": {"seconds": -1, "ended_by": "duration"}},
        {"findings": [{**good["findings"][0], "verdict": "maybe"}]},
        {"findings": [{**good["findings"][0], "mappings": [{}]}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate({**good, **spoil})


def test_contract_of_the_design_is_there_member_by_member() -> None:
    loaded = document(reports.raw_clone(3), EVERYTHING)
    assert loaded["schema"] == "ebpftrace.mmap-leaks/1"
    assert loaded["target"].items() >= {"pid": 4242, "comm": "cloner", "exe": "/home/me/reproducer"}.items()
    assert loaded["window"].items() >= {"seconds": 30.0, "ended_by": "interrupt"}.items()
    assert set(loaded["memory"]) == {"virt_start", "virt_end", "rss_start", "rss_end"}
    assert loaded["calls"] == {
        "mmap": 3,
        "munmap": 0,
        "mremap": 0,
        "brk": 0,
        "clone": 3,
        "fork": 0,
        "thread_exit": 3,
        "failed": [],
    }
    assert not any(loaded["losses"].values())
    assert {"tid", "name", "alive", "mappings", "bytes"} <= set(loaded["threads"][0])
    finding = loaded["findings"][0]
    assert (finding["verdict"], finding["leak"]) == ("abandoned-stack", True)
    assert (finding["count"], finding["bytes"], finding["rss_bytes"]) == (3, 3 * 40960, 3 * 4096)
    assert finding["stack"]["source"] == "copied"
    assert finding["stack"]["frames"][1] == {
        "function": "main",
        "file": "reproducer.c",
        "line": 27,
        "module": "/home/me/reproducer",
        "offset": 0x11D9,
        "inlined": False,
    }
    mapping = finding["mappings"][0]
    assert (mapping["start"], mapping["end"]) == ("0x7f4bc2600000", "0x7f4bc260a000")
    assert (mapping["mapper_tid"], mapping["owner_tid"], mapping["owner_name"]) == (4242, 4300, "cloner")
    mapped, exited = (datetime.fromisoformat(mapping[name]) for name in ("mapped_at", "owner_exited_at"))
    assert mapped.utcoffset() is not None
    assert exited - mapped == timedelta(microseconds=319)


@pytest.mark.parametrize("zone", ["UTC0", "XXX-5:45", "YYY3:30", "CET-1CEST,M3.5.0,M10.5.0/3"])
def test_times_are_local_with_their_offset(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    json_parts._second.cache_clear()
    try:
        ended = datetime.fromisoformat(document(reports.production(), EVERYTHING)["window"]["ended_at"])
        report = reports.production()
        assert ended.utcoffset() == ended.astimezone().utcoffset()
        assert ended.timestamp() == pytest.approx(report.clock.wall_ns(report.ended_at) / 1e9, abs=1e-6)
    finally:
        monkeypatch.undo()
        time.tzset()
        json_parts._second.cache_clear()


def test_a_time_has_microseconds_though_they_be_none() -> None:
    begun = 1_700_000_000_000_000_000
    assert len(json_parts.iso_time(begun)) == len(json_parts.iso_time(begun + 7_000))
    assert ".000000" in json_parts.iso_time(begun + 7)


def test_unknown_values_are_null() -> None:
    report = replace(reports.production(), findings=(reports.never_joined_before_attach(1),))
    finding = document(report, EVERYTHING)["findings"][0]
    assert finding["before_attach"] is True
    assert finding["bytes_per_minute"] is None
    assert finding["stack"] == {"frames": [], "complete": False, "source": "none", "note": ""}
    mapping = finding["mappings"][0]
    unknown = {name for name, value in mapping.items() if value is None}
    assert unknown >= {"mapper_tid", "owner_tid", "owner_name", "mapped_at", "owner_exited_at"}


def test_bytes_that_are_not_text_become_visible() -> None:
    report = reports.production()
    comm = b"caf\xe9\n".decode("utf-8", "surrogateescape")
    report = replace(report, target=replace(report.target, comm=comm))
    assert document(report, View())["target"]["comm"] == "caf\\xe9\n"


def test_reports_of_several_processes_are_one_valid_document() -> None:
    command = CommandEnd(("sh", "-c", "./a"), 4711, exit_status=7)
    main = replace(reports.healthy(), command=command)
    child = replace(reports.production(), is_child=True, undecided=3)
    text = "".join(mmap_leaks_json.render_all([main, child], Processes(5, 1, 0), EVERYTHING))
    assert text.count("\n") == 1
    loaded = json.loads(text)
    VALIDATOR.validate(loaded)
    assert (loaded["undecided"], loaded["command"]["exit_status"], len(loaded["reports"])) == (3, 7, 2)
    for name in ("reports", "undecided", "processes", "command"):
        assert not VALIDATOR.is_valid({key: value for key, value in loaded.items() if key != name})
    del loaded["reports"][1]["findings"]
    assert not VALIDATOR.is_valid(loaded)


def test_filters_are_reported() -> None:
    loaded = document(reports.production(), View(top=1, show_all=False))
    assert [finding["verdict"] for finding in loaded["findings"]] == ["never-joined-thread"]
    assert (loaded["hidden"]["findings"], loaded["hidden"]["leaks"]) == (3, 1)


def test_a_finding_of_many_mappings_has_them_all_in_order() -> None:
    report = reports.raw_clone(2500)
    (finding,) = report.findings
    rows = document(report, EVERYTHING)["findings"][0]["mappings"]
    assert [row["start"] for row in rows] == [
        hex(orphan.outstanding.mapping.start) for orphan in finding.orphans
    ]


def test_top_shortens_the_mappings_and_says_what_is_left_out() -> None:
    report = reports.raw_clone(9)
    whole = document(report, EVERYTHING)["findings"][0]
    assert whole["more_mappings"]["count"] == 0
    short = document(report, replace(EVERYTHING, most_mappings=4))["findings"][0]
    listed, more = short["mappings"], short["more_mappings"]
    assert (len(listed), more["count"]) == (4, 5)
    assert sum(one["bytes"] for one in listed) + more["bytes"] == short["bytes"] == whole["bytes"]
    assert {name: short[name] for name in ("count", "bytes", "rss_bytes", "fingerprint")} == {
        name: whole[name] for name in ("count", "bytes", "rss_bytes", "fingerprint")
    }


def test_schema_knows_every_verdict_and_stack_source() -> None:
    definitions = SCHEMA["$defs"]
    assert set(definitions["finding"]["properties"]["verdict"]["enum"]) == {v.value for v in Verdict}
    assert set(definitions["stack"]["properties"]["source"]["enum"]) == {s.value for s in StackSource}


def test_hidden_threads_that_moved_the_break_back_own_nothing() -> None:
    """Seen of a forked child that trimmed its heap; the schema has no negative bytes."""
    report = reports.production()
    gave_back = tuple(replace(total, mappings=0, size=0, brk_growth=-24576) for total in report.threads)
    document = json.loads(
        "".join(mmap_leaks_json.render(replace(report, threads=gave_back), View(show_all=False)))
    )
    VALIDATOR.validate(document)
    assert document["hidden"]["thread_bytes"] == 0
