# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace scan`` on this host, with programs on it that leak and that do not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, TypeVar

import harness
import jsonschema
import pytest
from process_helpers import compiled, running

from ebpftrace.classify import rank_candidates
from ebpftrace.classify.ranking import Rank
from ebpftrace.sessions import scan as sessions_scan
from ebpftrace.sessions.scan import Reader, read_sizes

SCHEMA = json.loads((harness.ROOT / "ebpftrace/report/schema/scan-1.json").read_text())
SCAN = (sys.executable, "-m", "ebpftrace", "scan")
STACK = (10 << 20) + os.sysconf("SC_PAGE_SIZE")


def run_scan(*options: object) -> str:
    ended = subprocess.run(
        [*SCAN, *map(str, options)],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def scan(*options: object) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run_scan("--json", "--top", 100_000, *options))
    jsonschema.validate(report, SCHEMA)
    return report


def process(report: dict[str, Any], pid: int) -> dict[str, Any]:
    (found,) = [one for one in report["processes"] if one["pid"] == pid]
    return found


_T = TypeVar("_T")


def scan_until(scanned: Callable[[], _T], good: Callable[[_T], bool], what: str) -> _T:
    """Scans until one is ``good``: the leaks of other tests may use up the time there is for thread lists."""
    reports: list[_T] = []

    def scan_again() -> bool:
        reports.append(scanned())
        return good(reports[-1])

    harness.eventually(scan_again, what)
    return reports[-1]


def test_leak_is_found_first_and_counted_right() -> None:
    with harness.Target("never_joined", 200) as target, harness.Target("healthy", "joined") as healthy:
        target.run()
        healthy.run()
        report = scan_until(
            scan, lambda one: process(one, target.pid)["books"] == "read", "thread lists read"
        )
        found = process(report, target.pid)
        calm = process(report, healthy.pid)
        reported = f"{target.pid} never_joined: 200 exited threads never joined"
        page = scan_until(lambda: run_scan("--top", 100_000), lambda text: reported in text, "leak reported")
    assert found["exited_threads"] == 200
    assert found["exited_bytes"] == 200 * STACK
    assert found["reasons"][0]["kind"] == "never-joined"
    ranks = [one["reasons"][0]["kind"] if one["reasons"] else "" for one in report["processes"]]
    assert ranks.index("never-joined") == 0
    assert calm["exited_threads"] in (None, 0)
    assert page.startswith("LEAK: ")
    assert f"next: ebpftrace mmap-leaks -p {target.pid}" in " ".join(page.split())


def test_growth_between_two_readings() -> None:
    with harness.Target("never_joined", 50) as target:
        scanning = subprocess.Popen(
            [*SCAN, "--json", "--top", "100000", "--for", "600"],
            cwd=harness.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # Its first look is over when it waits in poll.
        harness.eventually(lambda: waits_in_poll(scanning.pid), "scan waits")
        target.run()
        scanning.send_signal(2)
        output, errors = scanning.communicate(timeout=harness.PATIENCE)
        assert scanning.returncode == 0, errors
        report = json.loads(output)
        found = process(report, target.pid)
    assert found["virt_growth"] >= 50 * STACK
    reasons = {reason["kind"] for reason in found["reasons"]}
    assert "growth" in reasons
    # The leaks of other tests may use up the time there is for thread lists.
    assert "never-joined" in reasons or found["books"] == "not-looked"
    assert 0 < report["growth_seconds"] < 600


def waits_in_poll(pid: int) -> bool:
    """By the number of its system call: poll, ppoll (x86-64); ppoll (arm64)."""
    return Path(f"/proc/{pid}/syscall").read_bytes().split()[0] in (b"7", b"271", b"73")


def test_hostile_names_and_zombies(tmp_path: Path) -> None:
    program = compiled(
        tmp_path,
        r"""
        #include <stdio.h>
        #include <sys/prctl.h>
        #include <sys/wait.h>
        #include <unistd.h>
        int main(void) {
            prctl(PR_SET_NAME, "\033]0;x\a) R\n");
            if (!fork()) _exit(0);
            siginfo_t zombie;
            if (waitid(P_ALL, 0, &zombie, WEXITED | WNOWAIT)) return 1;
            puts("ready"); fflush(stdout); getchar();
        }
        """,
    )
    with running(program) as (hostile, _):
        page = run_scan("--top", 100_000)
        report = scan()
        found = process(report, hostile.pid)
    assert all(character.isprintable() for character in page.replace("\n", ""))
    assert max(map(len, page.splitlines())) <= 100
    assert found["comm"] == "\x1b]0;x\x07) R\n"
    assert report["counts"]["zombies"] >= 1


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_the_second_reading_cannot_confirm_is_no_leak() -> None:
    with harness.Target("never_joined", 50) as target:
        target.run()
        sizes = read_sizes()
        reader = Reader(sizes._replace(figures={target.pid: sizes.figures[target.pid]}))
        reader.read_shapes()
        reader.read_thread_lists()
        assert reader.figures[target.pid].exited == 50
        with no_more_files():
            reader.confirm()
    (figures,) = reader.figures.values()
    (suspected,) = rank_candidates([figures], None)
    assert (figures.thread_lists, figures.exited, figures.exited_size) == (None, 0, 0)
    assert [reason.rank for reason in suspected.reasons] == [Rank.SURPLUS]
    assert reader.lists_unread == 1


def test_a_process_with_very_many_stacks_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one with 71,000 would take the time that there is for all others."""
    read: list[int] = []
    monkeypatch.setattr(sessions_scan, "_MANY", 20)
    monkeypatch.setattr(sessions_scan, "_SECONDS_OF_LISTS", 1e6)
    read_lists = sessions_scan.read_thread_lists

    def recorded(pid: int, *arguments: Any, **named: Any) -> Any:
        read.append(pid)
        return read_lists(pid, *arguments, **named)

    monkeypatch.setattr(sessions_scan, "read_thread_lists", recorded)
    with ExitStack() as held:
        many, few, fewer = (held.enter_context(harness.Target("never_joined", n)) for n in (30, 15, 10))
        for target in (many, few, fewer):
            target.run()
        sizes = read_sizes()
        pids = (many.pid, few.pid, fewer.pid)
        reader = Reader(sizes._replace(figures={pid: sizes.figures[pid] for pid in pids}))
        reader.read_shapes()
        reader.read_thread_lists()
        reader.confirm()
        reader.judge()
        assert read[:3] == [few.pid, fewer.pid, many.pid]
        assert [reader.figures[pid].leaked for pid in pids] == [30, 15, 10]


@contextmanager
def crowd(number: int) -> Iterator[list[int]]:
    """So many real processes, each with threads."""
    code = (
        "import sys, threading\n"
        "for _ in range(3): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('ready', flush=True)\nsys.stdin.read()"
    )
    with ExitStack() as held:
        processes = [
            subprocess.Popen(
                [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(number)
        ]
        for one in processes:
            held.callback(one.wait)
            held.callback(one.kill)
        for one in processes:
            assert one.stdout is not None
            assert one.stdout.readline() == b"ready\n"
        yield [one.pid for one in processes]


def test_each_of_three_hundred_processes_is_read() -> None:
    with crowd(300) as pids:
        report = scan()
    assert set(pids) <= {one["pid"] for one in report["processes"]}


def test_processes_that_vanish_at_every_step() -> None:
    storm = subprocess.Popen(
        ["sh", "-c", "while :; do /bin/true & /bin/true & /bin/true & wait; done"], start_new_session=True
    )
    try:
        for _ in range(8):
            # It ends well, says nothing on stderr, and what it says adds up; who vanished is its luck.
            report = scan()
            assert len(report["processes"]) == report["counts"]["processes"]
            assert os.getpid() in {one["pid"] for one in report["processes"]}
    finally:
        os.killpg(storm.pid, 9)
        storm.wait()


def test_without_root_the_rest_is_counted_and_said() -> None:
    code = (
        "import os, sys; os.setgid(65534); os.setgroups([]); os.setuid(65534);"
        "from ebpftrace.cli import main; main(['scan', '--json', '--top', '100000'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        check=False,
    )
    # 4: what the greater part of the processes do could not be judged.
    assert ended.returncode == 4, ended.stderr
    report = json.loads(ended.stdout)
    jsonschema.validate(report, SCHEMA)
    assert report["counts"]["unreadable"] > 0
    assert process(report, os.getpid())["vmas"] is None
    assert process(report, os.getpid())["virt"] > 0
