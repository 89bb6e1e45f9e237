# SPDX-License-Identifier: Apache-2.0
"""The table of threads: one row for each place and state, and every byte in it or counted below it."""

from __future__ import annotations

from dataclasses import replace

import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings

from ebpftrace.model import Frame, Report, Stack, Thread, ThreadId, ThreadTotal
from ebpftrace.report.terminal import render
from ebpftrace.report.view import View, thread_groups

RUN = Stack((Frame("run_job", "job.c", 7, "/bin/app", 0x10),))
REAP = Stack((Frame("reap", module="/bin/app"),))


def total(tid: int, name: str, alive: bool, stack: Stack, size: int) -> ThreadTotal:
    thread = Thread(ThreadId(tid, 5), name, 1, exited_at=None if alive else 9)
    return ThreadTotal(thread, 1, size, stack=stack)


def test_identical_rows_are_one_row_with_a_count() -> None:
    totals = [total(100 + number, "job", False, RUN, 4096) for number in range(40)]
    totals += [total(7, "reaper", True, REAP, 8192)]
    totals += [total(tid, f"job-{tid}", True, RUN, 0) for tid in (8, 9)]
    page = render(replace(reports.healthy(), threads=tuple(totals)), View())
    rows = [line.split() for line in page.splitlines()]
    assert ["40", "threads", "job", "exited", "40", "160", "KiB", "-", "run_job", "job.c:7"] in rows
    assert ["7", "reaper", "alive", "1", "8", "KiB", "-", "reap"] in rows
    assert ["2", "threads", "job-*", "alive", "2", "0", "B", "-", "run_job", "job.c:7"] in rows


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(strategies.any_report)
def test_groups_hold_every_thread_once(report: Report) -> None:
    groups = thread_groups(report.threads)
    grouped = [one for group in groups for one in group.totals]
    assert sorted(map(id, grouped)) == sorted(map(id, report.threads))
    for group in groups:
        assert {one.thread.alive for one in group.totals} == {group.alive}
    weights = [group.size + group.brk_growth for group in groups]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == sum(one.size + one.brk_growth for one in report.threads)
