# SPDX-License-Identifier: Apache-2.0
"""What a traced process executes and forks: each process that creates threads is judged, also a short one."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from endings import HEALTHY, Leak, endings
from harness import Json, Result, Target, Tracer, build, leaks, run_tracer, traced
from programs import STRIPPED, compiled

LEAK, UNDECIDED = 3, 4


def document(result: Result) -> Json:
    """What it reported of several processes, checked against its schema."""
    reported = result.report
    assert "reports" in reported
    return reported


def leaked(report: Json) -> int:
    return sum(finding["count"] for finding in leaks(report))


def run_script(directory: Path, lines: list[str], *options: object) -> Result:
    script = directory / "script.sh"
    script.write_text("\n".join([*lines, "exit 0"]))
    return run_tracer("--json", "-q", "--fail-on-leak", *options, "--", "sh", script)


def leak_of(report: Json) -> Leak:
    """The leak of a process that has one, which may be of several calls."""
    own = [
        [frame["function"] for frame in finding["stack"]["frames"] if frame["module"].endswith("/finale")]
        for finding in leaks(report)
    ]
    creators = {functions[0] if functions else "" for functions in own}
    verdicts = {finding["verdict"] for finding in leaks(report)}
    return Leak(leaked(report), "/".join(creators), "/".join(verdicts))


def test_every_child_of_a_script_is_judged_by_itself(tmp_path: Path) -> None:
    """All ways to leave threads unjoined, or not, and to end; right after, or 2 ms after."""
    runs = {f"p{number}": one for number, one in enumerate(endings([0, 2]))}
    lines = []
    for name, one in runs.items():
        (tmp_path / name).symlink_to(build("finale"))  # what the process is called
        lines.append(f"{tmp_path / name} {' '.join(one.arguments)} 2>/dev/null")
        lines.append(f"echo {name} $? >>{tmp_path}/statuses")
    result = run_script(tmp_path, lines)
    assert result.status == LEAK
    reported = document(result)
    assert reported["processes"] == {
        "followed": sum(one.followed for one in runs.values()),
        "judged": sum(one.judged for one in runs.values()),
        "lost": 0,
    }
    assert reported["undecided"] == 0
    found = {report["target"]["comm"]: leak_of(report) for report in reported["reports"] if leaks(report)}
    assert found == {name: one.leak for name, one in runs.items() if one.leak is not None}
    statuses = dict(line.split() for line in (tmp_path / "statuses").read_text().splitlines())
    assert statuses == {name: str(one.status) for name, one in runs.items()}


def test_healthy_children_leave_the_status_of_the_command(tmp_path: Path) -> None:
    finale = build("finale")
    result = run_script(tmp_path, [f"{finale} {body} 2 return" for body in HEALTHY])
    assert (result.status, document(result)["undecided"]) == (0, 0)


def test_what_a_process_executes_is_traced_under_its_new_name() -> None:
    finale = build("finale")
    result = run_tracer("--json", "-q", "--fail-on-leak", "--", "env", finale, "leak1", 0, "kill")
    reported = document(result)
    assert result.status == LEAK
    assert (reported["command"]["signal"], reported["command"]["exit_status"]) == (signal.SIGKILL, None)
    before, after = reported["reports"]
    assert (before["window"]["ended_by"], Path(before["executed"]).name) == ("exec", "finale")
    assert before["target"]["pid"] == after["target"]["pid"]
    assert before["target"]["comm"] == "env"
    assert (leaked(before), leaked(after), after["target"]["comm"]) == (0, 1, "finale")


def test_without_following_children_are_not_traced() -> None:
    finale = build("finale")
    script = f"{finale} leak1 0 return; exit 0"
    options = ("--json", "-q", "--fail-on-leak", "--no-follow-forks")
    assert run_tracer(*options, "--", "sh", "-c", script).status == 0
    assert run_tracer(*options, "--", "sh", "-c", f"exec {finale} leak1 0 return").status == LEAK


def test_what_cannot_be_judged_in_a_child_is_no_success(tmp_path: Path) -> None:
    program = compiled(tmp_path, "finale", STRIPPED)
    result = run_script(tmp_path, [f"{program} leak5 2 return"])
    assert (result.status, document(result)["undecided"]) == (UNDECIDED, 5)


def test_processes_without_threads_cost_a_line(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("i=0; while [ $i -lt 500 ]; do (:); i=$((i+1)); done; /bin/true; exit 0")
    result = run_tracer("-q", "--fail-on-leak", "--", "sh", script)
    assert result.status == 0
    # A vfork counts when it executes.
    assert re.search(r"Followed: 50[12] processes \(forked or executed\); 0 created threads", result.stdout)
    assert "LOST" not in result.stdout


@pytest.mark.parametrize("options", [(), ("-f",)])
def test_children_of_a_running_process_are_traced_when_asked_for(options: tuple[str, ...]) -> None:
    with Target("prefork", 3, 2) as target, traced(target, "--fail-on-leak", *options) as tracer:
        target.run()
        assert target.end() == 0
        result = tracer.wait()
    if not options:
        assert result.status == 0
        assert leaked(result.report) == 0
        return
    assert result.status == LEAK
    children = {fact["pid"] for fact in target.facts("worker")}
    reported = {report["target"]["pid"]: leaked(report) for report in document(result)["reports"]}
    assert {pid: number for pid, number in reported.items() if number} == dict.fromkeys(children, 2)


def test_siblings_that_were_forked_have_stacks_each() -> None:
    """They have the same addresses, and few copies are made for each signature of a stack."""
    workers = 6
    with Target("prefork", workers, 2, "early") as target:
        pids = [fact["pid"] for fact in target.facts("forked")]
        others = [option for pid in pids for option in ("-p", pid)]
        with traced(target, *others, "--stack-rate", 0) as tracer:
            target.run()
            lines = tracer.interrupt().stdout.splitlines()
        target.end()
    reports = {report["target"]["pid"]: report for report in map(json.loads, lines)}
    assert len(set(pids)) == workers
    for pid in pids:
        assert reports[pid]["losses"]["stacks"] == 0
        (leak,) = [finding for finding in reports[pid]["findings"] if finding["leak"]]
        assert (leak["count"], leak["stack"]["source"], leak["stack"]["complete"]) == (2, "copied", True)


def test_a_leak_before_an_exec_counts_and_names_what_was_executed() -> None:
    with (
        Target("exec_after", 4) as target,
        Tracer("-p", target.pid, "--until-interrupt", "--fail-on-leak") as tracer,
    ):
        target.go()
        assert target.end() == 0
        result = tracer.wait()
    assert result.status == LEAK
    assert leaked(result.report) == 4
    assert os.path.basename(result.report["executed"]) == "cat"  # noqa: PTH119


def test_thousands_of_children_cost_little_and_none_is_lost() -> None:
    """One of a hundred creates a thread, one of a thousand leaves one unjoined."""
    result = run_tracer("--json", "-q", "--fail-on-leak", "--", build("fork_storm"), 3000, 100, 1000)
    reported = document(result)
    assert reported["processes"] == {"followed": 3000, "judged": 30, "lost": 0}
    assert sum(leaked(report) for report in reported["reports"]) == 3
    assert (result.status, reported["undecided"]) == (LEAK, 0)


def test_children_with_threads_may_come_faster_than_they_are_judged() -> None:
    """More than a thousand within a second: each keeps its number until then."""
    result = run_tracer("--json", "-q", "--fail-on-leak", "--", build("fork_storm"), 1500, 1, 100)
    reported = document(result)
    assert reported["processes"] == {"followed": 1500, "judged": 1500, "lost": 0}
    assert sum(leaked(report) for report in reported["reports"]) == 15
    assert (result.status, reported["undecided"]) == (LEAK, 0)


def test_each_process_names_the_one_with_threads_that_it_comes_from(tmp_path: Path) -> None:
    """Processes without threads in between, such as shells, are passed over."""
    script = tmp_path / "family.py"
    script.write_text(
        "import os, subprocess, sys, threading\n"
        "def start_thread():\n"
        "    thread = threading.Thread(target=int)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "start_thread()\n"
        "if len(sys.argv) > 1:\n"
        "    sys.exit()\n"
        "leaf = f'{sys.executable} {__file__} leaf'\n"
        "subprocess.run(['sh', '-c', f'{leaf}; {leaf}; :'])\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    start_thread()\n"
        "    subprocess.run([sys.executable, __file__, 'leaf'])\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    family = document(run_tracer("--json", "--", sys.executable, script))
    targets = [report["target"] for report in family["reports"]]
    (first,) = [target["pid"] for target in targets if target["parent_pid"] is None]
    parents = [target["parent_pid"] for target in targets if target["parent_pid"] is not None]
    assert sorted(parents.count(parent) for parent in set(parents)) == [1, 3]
    assert parents.count(first) == 3
    assert {*parents} <= {target["pid"] for target in targets}
