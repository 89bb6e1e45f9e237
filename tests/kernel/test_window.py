# SPDX-License-Identifier: Apache-2.0
"""The window of a trace: it lasts as long as was asked for, whatever else takes its time."""

from __future__ import annotations

import threading

import pytest
from harness import Target
from test_short_programs import Watched

from ebpftrace.model import Report
from ebpftrace.sessions import mmap_leaks
from ebpftrace.sessions.leak_watch import Captured, LeakWatch
from ebpftrace.sessions.searching import Searcher

SECONDS = 5.0


def takes_its_time() -> None:
    threading.Event().wait(SECONDS)


class Slow(Watched):
    """As long as it takes to say how many thousands of threads stand already."""

    def unjoined_before(self, unjoined_before: object) -> None:  # noqa: ARG002
        takes_its_time()


def test_it_is_as_long_as_asked_for_where_judging_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = LeakWatch.judge

    def judge_slowly(self: LeakWatch, captured: Captured, search: Searcher) -> Report:
        takes_its_time()
        return judge(self, captured, search)

    monkeypatch.setattr(LeakWatch, "judge", judge_slowly)
    watched = Slow()
    with Target("orphans", "kept", 3) as target:
        mmap_leaks.run(mmap_leaks.Settings(pids=[target.pid], duration=SECONDS), watched)
    assert SECONDS <= watched.last.seconds < 2 * SECONDS
