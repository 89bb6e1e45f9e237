# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace growth`` on programs that grow, and on one that does not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, cast

import harness
import jsonschema
import pytest
from process_helpers import running

from ebpftrace.capture.tracer import Tracer
from ebpftrace.cli.growth import _Console
from ebpftrace.ledger.replay import Ledger
from ebpftrace.model import Mapping
from ebpftrace.report.output import Stream
from ebpftrace.sessions.growth import Settings, run
from ebpftrace.sessions.growth_watch import GrowthWatch

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
        reported = sum(cause["bytes"] for cause in interval["causes"] or ()) + interval["unexplained_bytes"]
        since_last_look += interval["virt_change"]
        if interval["causes"] is not None:
            assert reported == since_last_look
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


@pytest.mark.parametrize(
    ("mode", "call"), [("shared", "shmat"), ("aio", "io_setup"), ("down", "mmap"), ("ended", None)]
)
def test_what_is_mapped_elsewise_has_its_whole_size(mode: str, call: Optional[str]) -> None:
    count = 3
    with (
        harness.Target("elsewise", mode, count) as target,
        watched(target.pid, "--until-interrupt", "--json", "-i", 3600) as growth,
    ):
        target.run()
        _, summary = documents(growth.interrupt())
    assert summary["unexplained_bytes"] == 0
    assert not any(summary["losses"].values())
    made = {"shmat": "attach", "io_setup": "set_up", "mmap": "grow_down", None: "nowhere"}[call]
    found = [cause for cause in summary["growth"] if made in functions(cause)]
    assert [(cause["call"], cause["mappings"]) for cause in found] == ([(call, count)] if call else [])
    facts = target.facts("mapped")
    if mode in ("shared", "down"):  # how large a ring is, is the kernel's affair
        assert sum(cause["bytes"] for cause in found) == sum(fact["length"] for fact in facts)


def test_what_was_mapped_elsewise_before_is_seen_to_go() -> None:
    """shmdt and io_destroy have no size, and what they end has no row."""
    with (
        harness.Target("elsewise", "before") as target,
        watched(target.pid, "--until-interrupt", "--json", "-i", 3600) as growth,
    ):
        target.run()
        _, summary = documents(growth.interrupt())
    assert summary["unexplained_bytes"] == 0
    (gone,) = summary["growth"]
    assert (gone["call"], gone["before_attach"]) == ("munmap", True)
    memory = summary["memory"]
    assert gone["bytes"] == memory["virt_end"] - memory["virt_start"] < 0


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


def of_command(page: Path, *arguments: object) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
    """Its status, and the intervals and summaries that ``growth`` made of it and its children."""
    ended = subprocess.run(
        [*GROWTH, "-o", page, "--json", *map(str, arguments)],
        cwd=harness.ROOT,
        input="go\n",
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        check=False,
    )
    lines = [json.loads(line) for line in page.read_text().splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    summaries = [line for line in lines if line["kind"] == "summary"]
    for summary in summaries:
        changes = [
            line["virt_change"]
            for line in lines
            if line["kind"] == "interval" and line["pid"] == summary["target"]["pid"]
        ]
        memory = summary["memory"]
        assert sum(changes) == memory["virt_end"] - memory["virt_start"]
    return ended.returncode, [line for line in lines if line["kind"] == "interval"], summaries


def test_a_command_and_its_child_are_watched(server: Path, tmp_path: Path) -> None:
    status, _, summaries = of_command(
        tmp_path / "growth.json", "-i", 0.5, "--", "timeout", "-s", "KILL", 4, server, 1
    )
    assert status == 137
    assert {one["window"]["ended_by"] for one in summaries} == {"target-exit"}
    parent, child = sorted(summaries, key=lambda one: one["target"]["comm"] != "timeout")
    assert (parent["target"]["comm"], child["target"]["comm"]) == ("timeout", "app_server")
    assert any("start_minute_job" in functions(cause) for cause in child["growth"])


def test_a_child_is_not_watched_where_that_is_not_wanted(server: Path, tmp_path: Path) -> None:
    _, intervals, summaries = of_command(
        *(tmp_path / "growth.json", "-i", 0.5, "--no-follow-forks", "--"),
        *("timeout", "-s", "KILL", 2, server, 1),
    )
    assert [one["target"]["comm"] for one in summaries] == ["timeout"]
    assert {one["pid"] for one in intervals} == {summaries[0]["target"]["pid"]}


def test_what_a_shell_executes_is_what_is_watched(tmp_path: Path) -> None:
    """The shell itself, which only starts it, is not summed up."""
    status, _, (summary,) = of_command(
        *(tmp_path / "growth.json", "-i", 0.5, "--"),
        *("env", "sh", "-c", f"exec {harness.build('grower')} timer"),
    )
    assert (status, summary["target"]["comm"]) == (0, "grower")
    (moved,) = [cause for cause in summary["growth"] if "move_break" in functions(cause)]
    # A busy machine may let us come a step late: what was before that is in its first size.
    assert moved["call"] == "brk"
    assert moved["bytes"] in [steps * (64 << 10) for steps in range(3, 7)]


def test_what_grew_just_before_the_end_is_no_riddle(tmp_path: Path) -> None:
    """A process that has ended has no size any more: its calls tell what became of the last one."""
    page = tmp_path / "growth.json"
    with subprocess.Popen(
        [*GROWTH, "-q", "-o", page, "--json", "-i", "1", "--", harness.build("grower"), "once"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as growth:
        is_begun = lambda: page.exists() and '"interval"' in page.read_text()  # noqa: E731
        harness.eventually(is_begun, "its first size has been read")
        growth.communicate("go\n", timeout=harness.PATIENCE)
    assert growth.returncode == 0
    summary = json.loads(page.read_text().splitlines()[-1])
    assert summary["window"]["ended_by"] == "target-exit"
    assert summary["unexplained_bytes"] == 0
    (mapped,) = [cause for cause in summary["growth"] if "map_some" in functions(cause)]
    assert mapped["bytes"] == 4 * MIB


def test_a_target_that_executes_is_watched_further() -> None:
    with (
        harness.Target("exec_after", 3) as target,
        watched(target.pid, "--until-interrupt", "--json", "-i", 0.2) as growth,
    ):
        target.go()
        name = Path(f"/proc/{target.pid}/comm")
        harness.eventually(lambda: name.read_text() == "cat\n", "it has executed cat")
        for _ in range(3):
            assert growth.lines.until(lambda line: '"interval"' in line)
        target.end()
        *_, last = map(json.loads, growth.wait())
    jsonschema.validate(last, SCHEMA)
    assert (last["kind"], last["target"]["pid"], last["target"]["comm"]) == ("summary", target.pid, "cat")
    assert last["window"]["ended_by"] == "target-exit"


def test_children_of_a_target_are_watched_where_that_is_wanted(server: Path) -> None:
    with (
        running("/bin/sh", "-c", f"echo; read go; {server} 1; true") as (shell, _),
        watched(shell.pid, "-f", "--until-interrupt", "--json", "-i", 0.5) as growth,
    ):
        assert shell.stdin is not None
        shell.stdin.write(b"go\n")
        shell.stdin.flush()
        assert growth.lines.until(lambda line: "start_minute_job" in line)
        seen = [json.loads(line) for line in growth.interrupt()]
        # Only the shell ends with the block.
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text()
        os.kill(int(children), signal.SIGKILL)
    names = [one["target"]["comm"] for one in seen if one["kind"] == "summary"]
    assert names == ["sh", "app_server"]


class OfCommand:
    """``growth`` of a COMMAND that reads from ``stdin``."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*GROWTH, "--json", *map(str, arguments)],
            cwd=harness.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        self.stdin = self.process.stdin
        self._lines = harness.Lines(self.process.stdout)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first interval from here on that fulfils the condition."""
        seen = self._lines.until(lambda line: condition(json.loads(line)))
        assert seen, self._lines.seen
        return cast("dict[str, Any]", json.loads(self._lines.seen[-1]))

    def end(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
        """Intervals and summaries, checked against the schema, and what is on stderr."""
        self.stdin.close()
        self._lines.until(None)
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        assert self.process.wait(harness.PATIENCE) == 0, errors
        lines = [json.loads(line) for line in self._lines.seen]
        for line in lines:
            jsonschema.validate(line, SCHEMA)
        kinds = [[line for line in lines if line["kind"] == kind] for kind in ("interval", "summary")]
        return kinds[0], kinds[1], errors


@contextmanager
def of_a_command(*arguments: object) -> Iterator[OfCommand]:
    growth = OfCommand(*arguments)
    try:
        yield growth
    finally:
        growth.process.kill()
        growth.process.wait()


@pytest.mark.parametrize("mode", ["fills", "maps"])
def test_a_child_that_only_fills_what_it_has_is_watched(mode: str) -> None:
    """It maps nothing and moves no break once it has begun; what it does later has its cause."""
    with of_a_command("-i", 0.5, "--", harness.build("quiet"), mode) as growth:
        parent = growth.until(lambda one: one["kind"] == "interval")["pid"]
        child = growth.until(lambda one: one["pid"] != parent and one["rss_change"] > 0)
        growth.stdin.write("\n")
        growth.stdin.flush()
        moved = growth.until(lambda one: one["pid"] == child["pid"] and bool(one["causes"]))
        intervals, summaries, _ = growth.end()
    assert moved["unexplained_bytes"] == 0
    (cause,) = moved["causes"]
    assert (cause["call"], cause["bytes"]) == ("brk", 8 * MIB)
    assert "move_break" in functions(cause)
    (summary,) = [one for one in summaries if one["target"]["pid"] == child["pid"]]
    assert summary["window"]["ended_by"] == "target-exit"
    assert summary["unexplained_bytes"] == 0
    assert summary["calls"]["brk"] >= 1
    grown = [one["rss_change"] for one in intervals if one["pid"] == child["pid"]]
    assert sum(grown) == summary["memory"]["rss_end"] - summary["memory"]["rss_start"] > 0


def test_what_fills_the_memory_of_a_quiet_child() -> None:
    with of_a_command("-i", 0.5, "--rss", "--sample", 1, "--", harness.build("quiet"), "fills") as growth:
        parent = growth.until(lambda one: one["kind"] == "interval")["pid"]
        filled = growth.until(lambda one: one["pid"] != parent and bool(one["rss_causes"]))
        _, summaries, _ = growth.end()
    assert any("fill_some" in functions(cause) for cause in filled["rss_causes"])
    (summary,) = [one for one in summaries if one["target"]["pid"] != parent]
    assert any("fill_some" in functions(cause) for cause in summary["resident"]["places"])


def test_a_child_that_does_not_change_is_counted_only() -> None:
    with of_a_command("-i", 0.2, "--", "sh", "-c", "sleep 3; true") as growth:
        intervals, (summary,), errors = growth.end()
    assert summary["target"]["comm"] == "sh"
    assert {one["pid"] for one in intervals} == {summary["target"]["pid"]}
    assert "1 child process not shown" in errors


def test_each_child_is_watched_once() -> None:
    """Some get their number from us, some from their own calls, and some from both at one moment."""
    many = 80
    grown: set[int] = set()

    def all_have_grown(line: dict[str, Any]) -> bool:
        if line["virt_change"] and line["pid"] != parent:
            grown.add(line["pid"])
        return len(grown) == many

    with of_a_command("-i", 0.3, "--", harness.build("quiet"), "many", many) as growth:
        parent = growth.until(lambda one: one["kind"] == "interval")["pid"]
        growth.until(all_have_grown)
        _, summaries, errors = growth.end()
    children = [one for one in summaries if one["target"]["pid"] != parent]
    assert len(children) == len({one["target"]["pid"] for one in children}) == many, errors
    for one in children:
        assert {site["call"] for site in one["growth"]} == {"mmap"}
        assert sum(site["bytes"] for site in one["growth"]) % MIB == 0


def test_a_command_that_had_mapped_before_its_first_size_was_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tracer comes late, when the loader has mapped all libraries: these are no growth then."""
    begin = GrowthWatch.begin

    def begin_late(watch: GrowthWatch, tracer: Tracer) -> None:
        state = Path(f"/proc/{watch.pid}/stat")
        harness.eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "S", "it sleeps")
        begin(watch, tracer)

    monkeypatch.setattr(GrowthWatch, "begin", begin_late)
    with Stream(sys.stdout, str(tmp_path / "page")) as stream:
        console = _Console(stream, json_output=True, quiet=True, output=None, of_several=False)
        run(Settings(interval=0.3, duration=None, command=["sleep", "2"]), console)
    _, summary = documents((tmp_path / "page").read_text().splitlines())
    assert summary["calls"]["mmap"] > 0
    assert summary["growth"] == []
    assert summary["unexplained_bytes"] == 0


def test_where_nothing_happens_nothing_is_worked_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What stands is worked out anew after calls only: it would take a second with 100,000 mappings."""
    worked_out = []
    outstanding = Ledger.outstanding

    def counted(self: Ledger, *given: Any) -> list[Mapping]:
        worked_out.append(self)
        return outstanding(self, *given)

    monkeypatch.setattr(Ledger, "outstanding", counted)
    with (
        running(sys.executable, "-c", "print(flush=True); input()") as (target, _),
        Stream(sys.stdout, str(tmp_path / "page")) as stream,
    ):
        console = _Console(stream, json_output=True, quiet=True, output=None, of_several=False)
        run(Settings(interval=0.2, duration=3.0, pids=(target.pid,)), console)
    *intervals, _ = (tmp_path / "page").read_text().splitlines()
    assert len(intervals) > 5
    assert 1 <= len(worked_out) <= 3
