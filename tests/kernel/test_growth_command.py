# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace growth`` on programs that grow, and on one that does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import harness
import jsonschema
import pytest
from process_helpers import running

SCHEMA = json.loads((harness.ROOT / "ebpftrace/report/schema/growth-1.json").read_text())
GROWTH = (sys.executable, "-m", "ebpftrace", "growth")
MIB = 1 << 20
STACK = 10_489_856
HOUR = 3600
ATTEMPTS = 4
"""At a program whose timer a busy machine may wake late: it says so, and shows no period then."""
LATE = 0.1
"""Part of its period by which it may be late and say nothing: intervals may be off by so much."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's server."""
    binary = tmp_path_factory.mktemp("demo") / "app_server"
    source = harness.ROOT / "demo" / "app_server.c"
    subprocess.run(["cc", "-O2", "-g", "-pthread", "-o", binary, source], check=True)
    return binary


class Watched:
    """``growth`` that has attached."""

    def __init__(self, pid: int, *options: object) -> None:
        self.process = subprocess.Popen(
            [*GROWTH, "-p", str(pid), *map(str, options)],
            cwd=harness.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.lines = harness.Lines(self.process.stdout)
        self._stderr = harness.Lines(self.process.stderr)
        assert self._stderr.until(lambda line: line == "attached"), self._stderr.seen

    def interrupt(self) -> list[str]:
        self.process.send_signal(2)
        return self.wait()

    def wait(self) -> list[str]:
        self.lines.until(None)
        self._stderr.until(None)
        assert self.process.wait(harness.PATIENCE) == 0, self._stderr.seen
        assert self._stderr.seen == ["attached"]
        return self.lines.seen


@contextmanager
def watched(pid: int, *options: object) -> Iterator[Watched]:
    growth = Watched(pid, *options)
    try:
        yield growth
    finally:
        growth.process.kill()
        growth.process.wait()


def documents(lines: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Intervals and summary, checked against the schema and against each other."""
    *intervals, summary = map(json.loads, lines)
    for document in (*intervals, summary):
        jsonschema.validate(document, SCHEMA)
    assert {interval["kind"] for interval in intervals} == {"interval"}
    since_last_look = 0
    for interval in intervals:
        told = sum(cause["bytes"] for cause in interval["causes"] or ()) + interval["unexplained_bytes"]
        since_last_look += interval["virt_change"]
        if interval["causes"] is not None:
            assert told == since_last_look
            since_last_look = 0
    assert since_last_look == 0
    memory = summary["memory"]
    grown = memory["virt_end"] - memory["virt_start"]
    assert sum(interval["virt_change"] for interval in intervals) == grown
    assert sum(site["bytes"] for site in summary["growth"]) + summary["unexplained_bytes"] == grown
    return intervals, summary


def in_time(server: Path, period: int, *options: object) -> list[str]:
    """What ``growth`` printed of a server that was not late once."""
    for _ in range(ATTEMPTS):
        with running(server, period) as (target, _), watched(target.pid, *options) as growth:
            lines = growth.wait()
            target.kill()
            assert target.stdout is not None
            if not target.stdout.read():
                return lines
    pytest.skip("this machine wakes timers late")


def functions(cause: dict[str, Any]) -> list[Optional[str]]:
    return [frame["function"] for frame in cause["stack"]["frames"]]


def names(cause: dict[str, Any]) -> set[str]:
    return {thread["name"] for thread in cause["threads"]}


def test_period_step_and_site_of_a_leak(server: Path) -> None:
    intervals, summary = documents(in_time(server, 2, "-d", 20, "--json"))
    (regular,) = [site for site in summary["growth"] if site["period_seconds"] is not None]
    assert regular["period_seconds"] == pytest.approx(2, rel=LATE)
    assert regular["step_bytes"] == STACK
    assert regular["call"] == "mmap"
    assert names(regular) == {"timer"}
    assert {"start_minute_job", "run_timer"} <= set(functions(regular))
    assert regular["bytes"] == regular["mappings"] * STACK
    # By the whole stack: the thread's first malloc, seen when attached early, maps an arena from there too.
    steps = [
        cause for one in intervals for cause in one["causes"] or () if functions(cause) == functions(regular)
    ]
    assert sum(cause["bytes"] for cause in steps) == regular["bytes"]
    assert sum(one["seconds"] for one in intervals) == pytest.approx(summary["window"]["seconds"])


def test_healthy_server_has_no_period(server: Path) -> None:
    """Workers that map and unmap all the time, and helper threads; the leak is an hour away."""
    with running(server, HOUR) as (target, _), watched(target.pid, "-d", 8, "--json") as growth:
        _, summary = documents(growth.wait())
    assert summary["calls"]["mmap"] > 10
    assert [site for site in summary["growth"] if site["period_seconds"] is not None] == []


def test_every_byte_has_its_cause() -> None:
    with (
        harness.Target("grower", "once") as target,
        watched(target.pid, "--until-interrupt", "--json", "-i", 3600) as growth,
    ):
        target.run()
        _, summary = documents(growth.interrupt())
    causes = summary["growth"]
    assert summary["unexplained_bytes"] == 0
    assert not any(summary["losses"].values())
    # The main thread's malloc moves it too, in pthread_create.
    (moved,) = [cause for cause in causes if "move_break" in functions(cause)]
    assert (moved["call"], moved["bytes"], names(moved)) == ("brk", MIB, {"breaker"})
    (mapped,) = [cause for cause in causes if "map_some" in functions(cause)]
    assert (mapped["call"], mapped["bytes"], mapped["mappings"]) == ("mmap", 4 * MIB, 1)
    (gone,) = [cause for cause in causes if cause["before_attach"]]
    assert (gone["call"], gone["bytes"]) == ("munmap", -7 * MIB)


def test_break_that_moves_regularly() -> None:
    for _ in range(ATTEMPTS):
        with (
            harness.Target("grower", "timer") as target,
            watched(target.pid, "--until-interrupt", "--json") as growth,
        ):
            target.run()
            _, summary = documents(growth.interrupt())
        if not target.facts("late"):
            break
    else:
        pytest.skip("this machine wakes timers late")
    (moved,) = [cause for cause in summary["growth"] if cause["call"] == "brk"]
    assert moved["bytes"] == 6 * (64 << 10)
    assert moved["step_bytes"] == 64 << 10
    assert moved["period_seconds"] == pytest.approx(1, rel=LATE)
    assert "move_break" in functions(moved)


def test_text_has_a_line_for_each_interval(server: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    assert in_time(server, 1, "-d", 10, "-o", page) == []
    text = page.read_text()
    assert len(re.findall(r"^\d\d:\d\d:\d\d +\d+ +", text, re.MULTILINE)) >= 2
    # A tracer that comes late tells of several turns at once; one that comes early, of an arena too.
    steps = re.findall(r"\+(\d+) mmap timer: start_thread < start_minute_job", text)
    assert [step for step in steps if int(step) % 10244 == 0]
    period = r"every (9\d\d ms|1 s|1\.1 s)"
    assert re.search(
        rf"^PERIOD: \+10244 KiB {period}, thread 'timer', start_thread app_server\.c:35", text, re.MULTILINE
    )
    assert max(map(len, text.splitlines())) <= 100


def test_lines_come_while_it_watches() -> None:
    with (
        harness.Target("grower", "timer") as target,
        watched(target.pid, "--until-interrupt", "-i", 0.2) as growth,
    ):
        assert growth.lines.until(lambda line: re.match(r"\d\d:\d\d:\d\d +\d+ +[+0]", line) is not None)
        target.process.kill()
        seen = growth.wait()
    assert any("ended because the target exited" in line for line in seen)


def test_several_processes_have_rows_of_their_own(server: Path) -> None:
    with (
        running(server, 1) as (first, _),
        running(server, 1) as (second, _),
        watched(first.pid, "-p", second.pid, "-d", 4, "--json") as growth,
    ):
        documents = [json.loads(line) for line in growth.wait()]
    for document in documents:
        jsonschema.validate(document, SCHEMA)
    pids = {first.pid, second.pid}
    assert {one["pid"] for one in documents if one["kind"] == "interval"} == pids
    summaries = [one for one in documents if one["kind"] == "summary"]
    assert sorted(one["target"]["pid"] for one in summaries) == sorted(pids)
    assert all(one["calls"]["mmap"] > 0 for one in summaries)


def test_a_command_is_watched_from_its_first_instruction(server: Path, tmp_path: Path) -> None:
    page = tmp_path / "growth.json"
    ended = subprocess.run(
        [*GROWTH, "-i", "0.5", "-o", page, "--json", "--", "timeout", "-s", "KILL", "4", server, "1"],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        check=False,
    )
    assert ended.returncode == 137, ended.stderr
    *intervals, summary = map(json.loads, page.read_text().splitlines())
    assert summary["window"]["ended_by"] == "target-exit"
    assert summary["target"]["comm"] == "timeout"
    grown = summary["memory"]["virt_end"] - summary["memory"]["virt_start"]
    assert sum(one["virt_change"] for one in intervals) == grown
