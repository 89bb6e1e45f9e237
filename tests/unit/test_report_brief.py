# SPDX-License-Identifier: Apache-2.0
"""``--brief``: twenty lines, whatever the report holds, and the verdict first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from ebpftrace.model import Report
from ebpftrace.report import brief, terminal
from ebpftrace.report.view import View


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(strategies.any_report, st.integers(60, 120), st.integers(1, 100))
def test_it_keeps_to_twenty_lines_of_the_page(report: Report, width: int, top: int) -> None:
    page = brief.render(report, View(top=top), width=width)
    lines = page.splitlines()
    assert 2 <= len(lines) <= 20
    assert max(map(cell_len, lines)) <= width
    assert all(line == line.rstrip() and (not line or line.isprintable()) for line in lines)


def test_it_says_what_leaks_where_from_why_and_what_to_do() -> None:
    page = brief.render(reports.production(), View())
    assert page.startswith("LEAK (proved): 27,842 threads exited and were never joined: 272.0 GiB of")
    assert "target      app_server (PID 31108): VIRT 285.0 GiB (+20488 KiB), RSS 4.0 GiB" in page
    assert "2. never-joined-thread: 2 stacks" in page
    assert "created at  acme::spawn<&acme::minute_job> (inlined)  timer.hpp:41" in page
    assert "started at  acme::minute_job(void*)  jobs.cpp:23" in page
    assert "\nwhy         " in page
    assert "\nadvice      pthread_join() these threads" in page


def test_findings_that_do_not_fit_are_counted_with_their_bytes() -> None:
    finding = reports.never_joined_in_window()
    many = replace(reports.production(), findings=(finding,) * 30)
    page = brief.render(many, View())
    shown = sum(line.split(".")[0].isdigit() for line in page.splitlines())
    assert 0 < shown < 30
    assert page.splitlines()[-1].startswith(f"and {30 - shown} more findings, ")
    none = brief.render(many, View(min_bytes=1 << 60))
    assert none.splitlines()[-1].startswith("and 30 more findings, ")


def test_a_target_without_a_leak_is_a_few_lines() -> None:
    page = brief.render(reports.healthy(), View())
    assert page.startswith("No leak seen in 2 min\n")
    assert len(page.splitlines()) <= 5


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_number_keeps_its_unit_and_the_verdict_comes_again(width: int) -> None:
    page = terminal.render(reports.production(), View(), width=width, verdict_again=True)
    verdict = page.partition("\n\n")[0]
    assert page.endswith(f"\n\n{verdict}\n")
    for line in verdict.splitlines()[:-1]:
        assert not line.split()[-1].strip("+").replace(".", "").isdigit(), line
    healthy = replace(reports.healthy(), findings=(), threads=())
    short = terminal.render(healthy, View(), width=width, verdict_again=True)
    assert short.count("No leak seen") == 1
