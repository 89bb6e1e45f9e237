# SPDX-License-Identifier: Apache-2.0
"""``report`` and ``diff``: saved reports by the command line, without root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import reports
from click.testing import CliRunner, Result

from ebpftrace.cli import main
from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import EndedBy, Processes, Report
from ebpftrace.report import brief, mmap_leaks_json, terminal
from ebpftrace.report.view import View

ALL = View(top=1000)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def save(name: str, *saved: Report) -> None:
    Path(name).write_text("".join("".join(mmap_leaks_json.render(one, ALL)) for one in saved))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def ended(report: Report) -> Report:
    return replace(report, ended_by=EndedBy.TARGET_EXIT)


def test_a_saved_report_is_shown_as_it_was() -> None:
    save("r.json", reports.production())
    assert run("report", "r.json").stdout == terminal.render(reports.production(), View())
    assert run("report", "--json", "--top", "100000", "r.json").stdout == Path("r.json").read_text()
    assert run("report", "--brief", "r.json").stdout == brief.render(reports.production(), View())
    assert run("report", "--folded", "r.json").stdout.startswith("app_server;[never-joined-thread]")


def test_top_shortens_the_json_only_where_it_is_given() -> None:
    save("r.json", reports.raw_clone(30))
    (whole,) = json.loads(run("report", "--json", "r.json").stdout)["findings"]
    (short,) = json.loads(run("report", "--json", "--top", "5", "r.json").stdout)["findings"]
    assert (len(whole["mappings"]), len(short["mappings"])) == (30, 5)
    assert short["more_mappings"]["count"] == 25


def test_every_file_is_written_from_one_reading() -> None:
    save("r.json", reports.production())
    names = ("x.html", "s.json", "j.xml", "r.sarif", "a.txt", "p.gz", "t.json", "b.json")
    options = ("flamegraph", "speedscope", "junit", "sarif", "annotations", "pprof", "timeline")
    given = [f"--{option}={name}" for option, name in zip((*options, "write-baseline"), names)]
    result = run("report", "r.json", *given)
    assert result.exit_code == 0, result.output
    assert all(Path(name).stat().st_size for name in names)


def test_no_two_files_may_be_one() -> None:
    save("r.json", reports.production())
    result = run("report", "r.json", "--junit=x", "--sarif=x")
    assert result.exit_code == 2
    assert "--junit and --sarif would write to the same file" in result.output


def test_standard_input_is_read_too() -> None:
    text = "".join(mmap_leaks_json.render(reports.raw_clone(), ALL))
    assert CliRunner().invoke(main, ["report", "-"], input=text).stdout.startswith("LEAK")


def test_the_gate_judges_saved_reports() -> None:
    save("leak.json", reports.production())
    save("good.json", reports.healthy())
    save("cut.json", reports.healthy())
    assert run("report", "leak.json").exit_code == 0
    assert run("report", "--fail-on-leak", "leak.json").exit_code == 3
    assert run("report", "--fail-on-leak=100000", "leak.json").exit_code == 0
    assert run("report", "--fail-on-leak", "good.json").exit_code == 0
    document = json.loads(Path("cut.json").read_text())
    document["hidden"]["leaks"] = 1
    Path("cut.json").write_text(json.dumps(document))
    assert run("report", "--fail-on-leak", "cut.json").exit_code == 4


def test_of_an_interval_the_last_report_counts() -> None:
    early = replace(reports.production(), ended_by=EndedBy.INTERVAL)
    save("r.json", early, reports.healthy())
    assert run("report", "--fail-on-leak", "r.json").exit_code == 0
    assert run("report", "r.json").stdout.startswith("LEAK")


def test_a_document_of_several_processes_is_shown_and_written_back() -> None:
    both = (ended(reports.healthy()), replace(ended(reports.raw_clone()), is_child=True))
    Path("d.json").write_text("".join(mmap_leaks_json.render_all(both, Processes(1, 1, 0), ALL)))
    result = run("report", "d.json").stdout
    assert result.startswith("LEAK")
    assert "cloner" in result
    line = "Followed: 1 process (forked or executed); 1 created a thread, 0 of them have nothing to report"
    assert result.rstrip().endswith(line)
    assert run("report", "--json", "--top", "1000", "d.json").stdout == Path("d.json").read_text()


def test_suppressions_and_baselines_work_on_saved_reports() -> None:
    save("r.json", reports.raw_clone())
    Path(".ebpftrace-suppressions").write_text("any:main\nthread:unused\n")
    result = run("report", "--fail-on-leak", "r.json")
    assert result.exit_code == 0
    assert "Accepted: 15 mappings" in result.stdout
    assert "unused suppression: thread:unused (.ebpftrace-suppressions:2)" in result.stderr
    Path("none").write_text("")
    assert run("report", "--fail-on-leak", "--suppressions=none", "r.json").exit_code == 3
    assert run("report", "--suppressions=none", "--write-baseline=b", "r.json").exit_code == 0
    assert fingerprint(reports.raw_clone().findings[0]) in Path("b").read_text()
    assert run("report", "--fail-on-leak", "--suppressions=none", "--baseline=b", "r.json").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--suppressions=bad",), "bad: line 2: 'thread' does not begin with thread:, mapping: or any:"),
        (("--suppressions=missing",), "cannot read missing: no such file or directory"),
        (("--suppressions=.",), "cannot read .: is a directory"),
        (("--baseline=bad",), "bad is no baseline: it is not JSON; --write-baseline makes one"),
        (("bad",), "bad is not what mmap-leaks --json writes: line 1 is not JSON"),
        (("--json", "--folded"), "--json and --folded exclude each other"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(arguments: tuple[str, ...], line: str) -> None:
    save("r.json", reports.production())
    Path("bad").write_text("# x\nthread\n")
    result = run("report", *arguments, "r.json")
    assert result.exit_code == 2
    assert line in result.output
    assert "Traceback" not in result.output


def test_diff_exits_by_what_became_worse() -> None:
    save("none.json", ended(reports.healthy()))
    save("few.json", ended(reports.raw_clone(3)))
    save("many.json", ended(reports.raw_clone(9)))
    for old, new, status, line in (
        ("none", "few", 3, "WORSE: 1 new"),
        ("few", "many", 3, "WORSE: 1 grown"),
        ("few", "few", 0, "NO CHANGE: 1 leak in both runs"),
        ("many", "few", 0, "BETTER: 1 shrunk"),
        ("few", "none", 0, "FIXED: 1 gone"),
        ("none", "none", 0, "NO LEAK in either run"),
    ):
        result = run("diff", f"{old}.json", f"{new}.json")
        assert (result.exit_code, result.stdout.splitlines()[0]) == (status, line)
    assert json.loads(run("diff", "--json", "none.json", "few.json").stdout)["worse"] is True
    assert run("diff", "--markdown", "none.json", "few.json").stdout.startswith("**ebpftrace:** WORSE")
    assert run("diff", "--json", "--markdown", "none.json", "few.json").exit_code == 2


def test_diff_does_not_call_fixed_what_could_not_be_judged() -> None:
    save("few.json", ended(reports.raw_clone(3)))
    save("doubt.json", replace(ended(reports.healthy()), undecided=2))
    result = run("diff", "few.json", "doubt.json")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (
        4,
        "CANNOT TELL: 1 gone; not all could be judged (see below)",
    )


def test_diff_leaves_out_what_is_suppressed() -> None:
    save("none.json", ended(reports.healthy()))
    save("few.json", ended(reports.raw_clone(3)))
    Path("s").write_text("any:main\n")
    assert run("diff", "--suppressions=s", "none.json", "few.json").exit_code == 0
