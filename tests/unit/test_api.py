# SPDX-License-Identifier: Apache-2.0
"""The Python API where nothing is traced: reports, errors, and what an import costs and changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import reports

import ebpftrace
from ebpftrace import model
from ebpftrace.model import EndedBy, Processes
from ebpftrace.report import mmap_leaks_json, terminal
from ebpftrace.report.view import View


def in_new_process(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def saved(directory: Path, *several: model.Report) -> Path:
    file = directory / "report.json"
    file.write_text("".join(part for one in several for part in mmap_leaks_json.render(one, View(top=1000))))
    return file


def test_the_import_loads_nothing_else() -> None:
    code = "import sys, ebpftrace; print(*sorted(m for m in sys.modules if m.startswith('ebpftrace.')))"
    assert in_new_process(code).split() == []


def test_the_api_needs_neither_bcc_nor_what_a_report_needs() -> None:
    code = (
        "import sys; sys.modules.update(bcc=None, drgn=None, numpy=None, rich=None, click=None)\n"
        "import ebpftrace\n"
        "print(*(name for name in ebpftrace.__all__ if getattr(ebpftrace, name) is None))"
    )
    assert in_new_process(code).split() == []


def test_all_names_are_there() -> None:
    for name in ebpftrace.__all__:
        assert getattr(ebpftrace, name).__doc__, name
    assert set(ebpftrace.__all__) <= set(dir(ebpftrace))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ebpftrace.no_such_name


def test_a_report_is_read_back_and_written_again(tmp_path: Path) -> None:
    file = saved(tmp_path, reports.production())
    report = ebpftrace.Report.from_json(file)
    assert [leak.verdict for leak in report.leaks] == [
        finding.verdict for finding in reports.production().findings if finding.leak
    ]
    assert report.to_json() == file.read_text()
    assert report.to_text(width=90) == terminal.render(report.processes[0], View(), width=90)
    assert len(report.to_text(brief=True).splitlines()) <= 20


def test_a_report_of_several_processes_is_read_back(tmp_path: Path) -> None:
    parent, child = reports.healthy(), replace(reports.raw_clone(), is_child=True)
    report = ebpftrace.Report((parent, child), Processes(followed=3, judged=1, lost=0))
    file = tmp_path / "report.json"
    file.write_text(report.to_json())
    schema = (resources.files("ebpftrace.report") / "schema" / "mmap-leaks-1.json").read_text()
    jsonschema.validate(json.loads(report.to_json()), json.loads(schema))
    again = ebpftrace.Report.from_json(file)
    assert again.followed == report.followed
    assert len(again.leaks) == len(report.leaks) > 0
    assert "Followed: 3 processes" in again.to_text()


def test_of_interval_reports_the_last_one_counts(tmp_path: Path) -> None:
    earlier = replace(reports.production(), ended_by=EndedBy.INTERVAL)
    report = ebpftrace.Report.from_json(saved(tmp_path, earlier, earlier, reports.production()))
    assert [one.ended_by for one in report.processes] == [reports.production().ended_by]


def test_what_was_lost_or_undecided_is_not_conclusive() -> None:
    good = reports.healthy()
    assert ebpftrace.Report((good,)).is_conclusive
    assert not ebpftrace.Report((replace(good, undecided=1),)).is_conclusive
    lost = replace(good.losses, events=1)
    assert not ebpftrace.Report((replace(good, losses=lost),)).is_conclusive
    assert not ebpftrace.Report((good,), Processes(followed=9, judged=1, lost=1)).is_conclusive


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00", '{"schema": "ebpftrace.mmap-leaks/1"}'])
def test_a_file_that_is_no_report_is_an_error(tmp_path: Path, content: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(content)
    with pytest.raises(ebpftrace.EbpftraceError, match=r"report\.json is not what mmap-leaks --json writes"):
        ebpftrace.Report.from_json(file)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ebpftrace.EbpftraceError) as raised:
        ebpftrace.Report.from_json(tmp_path / "missing\n.json")
    assert "\n" not in raised.value.what


def test_find_leaks_takes_a_process_or_a_command() -> None:
    with pytest.raises(TypeError):
        ebpftrace.find_leaks()
    with pytest.raises(TypeError):
        ebpftrace.find_leaks(pid=1, command=["true"])
    with pytest.raises(TypeError, match="root"):
        ebpftrace.find_leaks(command=["true"], sudo=True)
    with pytest.raises(ebpftrace.EbpftraceError, match="LeakTracer"):
        ebpftrace.find_leaks(pid=os.getpid())


def test_a_tracer_that_was_not_started_says_so() -> None:
    tracer = ebpftrace.LeakTracer()
    with pytest.raises(ebpftrace.EbpftraceError, match="no report yet"):
        _ = tracer.report
    with pytest.raises(ebpftrace.EbpftraceError, match="not started"):
        tracer.stop()
    tracer.cancel()


def test_reading_changes_nothing_of_the_caller() -> None:
    code = """
import gc, os, resource, signal
import numpy  # which changes the environment while it is imported
import ebpftrace
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)]
    return handlers, limits, dict(os.environ), os.getcwd(), gc.isenabled(), gc.get_threshold()
before, changes = state(), []
real_signal, real_put = signal.signal, type(os.environ).__setitem__
signal.signal = lambda *given: changes.append(given) or real_signal(*given)
type(os.environ).__setitem__ = lambda self, *given: changes.append(given) or real_put(self, *given)
space = ebpftrace.address_space(os.getpid())
census = ebpftrace.scan()
assert space.target.pid == os.getpid()
assert any(suspect.figures.pid == os.getpid() for suspect in census.candidates)
assert state() == before
print(*changes)
"""
    assert in_new_process(code).split() == []


def test_no_module_has_the_name_of_a_function() -> None:
    """Once such a module is imported, it would take the place of the function."""
    package = Path(ebpftrace.__file__).parent
    assert [
        name for name in ebpftrace.__all__ if list(package.glob(name)) + list(package.glob(f"{name}.py"))
    ] == []
