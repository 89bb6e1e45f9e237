# SPDX-License-Identifier: Apache-2.0
"""The gate with suppressions and baselines, and two builds of a program compared, on real traces."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from harness import PATIENCE, ROOT, SCHEMA, Json, leaks, run_tracer
from ruamel.yaml import YAML

LEAK = 3
SOURCE = """
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
static int threads(void) { struct stat task; stat("/proc/self/task", &task); return task.st_nlink - 2; }
static void *job(void *nothing) { return nothing; }
static void start(void) { pthread_t thread; pthread_create(&thread, 0, job, 0); }
__attribute__((noinline)) void first(int times) { while (times--) start(); }
__attribute__((noinline)) void second(int times) { while (times--) start(); }
int main(void) {
  if (FIRST) first(FIRST);
  if (SECOND) second(SECOND);
  while (threads() > 1) sched_yield();
  return 0;
}
"""


def build(directory: Path, first: int, second: int, *, lines_before: int = 0, flags: str = "-O0") -> Path:
    directory.mkdir()
    (directory / "server.c").write_text("\n" * lines_before + SOURCE)
    numbers = (f"-DFIRST={first}", f"-DSECOND={second}")
    command = ["cc", "-g", flags, "-pthread", *numbers, "-o", "server", "server.c"]
    subprocess.run(command, cwd=directory, check=True)
    return directory / "server"


def traced(server: Path, *options: object) -> tuple[int, Json]:
    result = run_tracer("--json", "-q", *options, "--", server, cwd=server.parent)
    report = json.loads(result.stdout)
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    return result.status, report


def ours(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("ebpftrace", path=str(Path(sys.executable).parent))
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Json]]:
    """One program: as it was, built anew with other lines, with a leak more, with one mended."""
    directory = tmp_path_factory.mktemp("builds")
    servers = {
        "old": build(directory / "old", 5, 0),
        "moved": build(directory / "moved", 5, 0, lines_before=40, flags="-O1"),
        "more": build(directory / "more", 5, 3),
        "mended": build(directory / "mended", 0, 3),
    }
    found = {}
    for name, server in servers.items():
        status, report = traced(server)
        assert status == 0
        (server.parent / "report.json").write_text(json.dumps(report))
        found[name] = server, report
    return found


def names(report: Json) -> dict[str, int]:
    return {finding["fingerprint"]: finding["count"] for finding in leaks(report)}


def test_a_fingerprint_outlives_a_rebuild_and_reports_callers_apart(
    runs: dict[str, tuple[Path, Json]],
) -> None:
    found = {name: names(report) for name, (_, report) in runs.items()}
    (first,) = found["old"]
    assert found["moved"] == found["old"] == {first: 5}
    assert found["more"].keys() > {first}
    assert found["mended"] == {name: 3 for name in found["more"] if name != first}


def test_a_suppressed_leak_does_not_fail_the_gate(runs: dict[str, tuple[Path, Json]]) -> None:
    server = runs["more"][0]
    rules = server.parent / "rules"
    rules.write_text("# known since last year\nthread:function=first\n")
    status, report = traced(server, "--fail-on-leak", "--suppressions", rules)
    assert status == LEAK
    accepted = {finding["count"]: finding["accepted"] for finding in leaks(report)}
    assert accepted == {5: {"by": "suppression", "why": "thread:function=first"}, 3: None}
    (server.parent / ".ebpftrace-suppressions").write_text("thread:first\nthread:second\nmapping:nothing\n")
    result = run_tracer("--fail-on-leak", "--", server, cwd=server.parent)
    (server.parent / ".ebpftrace-suppressions").unlink()
    assert result.status == 0
    assert result.stdout.startswith("No new leak seen")
    assert "unused suppression: mapping:nothing (.ebpftrace-suppressions:3)" in result.stderr


def test_of_a_baseline_only_a_new_leak_fails_the_gate(runs: dict[str, tuple[Path, Json]]) -> None:
    old, more = runs["old"][0], runs["more"][0]
    known = old.parent / "known.json"
    assert traced(old, "--fail-on-leak", "--write-baseline", known)[0] == LEAK
    assert traced(old, "--fail-on-leak", "--baseline", known)[0] == 0
    assert traced(runs["moved"][0], "--fail-on-leak", "--baseline", known)[0] == 0
    assert traced(more, "--fail-on-leak", "--baseline", known)[0] == LEAK


def test_two_runs_compared_say_whether_the_fix_helped(runs: dict[str, tuple[Path, Json]]) -> None:
    directory = runs["old"][0].parent.parent
    for old, new, status, line in (
        ("old", "moved", 0, "NO CHANGE: 1 leak in both runs"),
        ("old", "more", LEAK, "WORSE: 1 new, 1 same"),
        ("more", "mended", 0, "BETTER: 1 same, 1 gone"),
        ("old", "mended", LEAK, "PARTLY: 1 new, 1 gone"),
    ):
        outcome = ours("diff", f"{old}/report.json", f"{new}/report.json", cwd=directory)
        assert (outcome.returncode, outcome.stdout.splitlines()[0]) == (status, line), outcome.stderr


def test_one_trace_writes_all_files(runs: dict[str, tuple[Path, Json]], tmp_path: Path) -> None:
    server = runs["more"][0]
    (server.parent / ".git").mkdir(exist_ok=True)
    files = {name: tmp_path / name for name in ("junit", "sarif", "annotations", "pprof", "timeline")}
    status, report = traced(server, *(f"--{name}={path}" for name, path in files.items()))
    assert status == 0
    assert ElementTree.parse(files["junit"]).getroot().get("failures") == "2"
    (run,) = json.loads(files["sarif"].read_text())["runs"]
    assert {result["partialFingerprints"]["ebpftrace/v1"] for result in run["results"]} == set(names(report))
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"] for result in run["results"]]
    assert places == [{"uri": "server.c", "uriBaseId": "SRCROOT"}] * 2
    assert all(",file=server.c,line=7::" in line for line in files["annotations"].read_text().splitlines())
    assert files["pprof"].read_bytes()[:2] == b"\x1f\x8b"
    events = json.loads(files["timeline"].read_text())["traceEvents"]
    assert sum(event["name"] == "exited" for event in events) == 8


ACTION = ROOT / ".github" / "actions" / "mmap-leaks" / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "mmap-leaks.yml"


def run_step(run: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell step of a workflow as GitHub's runner does, with this installation."""
    program = shutil.which("ebpftrace", path=str(Path(sys.executable).parent)) or ""
    variables = {"EBPFTRACE": program, "GITHUB_ACTIONS": "true", "GITHUB_ACTION_PATH": str(ACTION.parent)}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", run],
        cwd=cwd,
        env={**os.environ, **variables, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def run_action(cwd: Path, summary: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """The last step of the composite action, with these inputs; the first one installs ebpftrace."""
    action = YAML(typ="safe").load(ACTION)
    inputs = {name: given.get(name, one.get("default", "")) for name, one in action["inputs"].items()}
    step = action["runs"]["steps"][-1]
    environment = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], value)
        for name, value in step["env"].items()
    }
    return run_step(step["run"], cwd, GITHUB_STEP_SUMMARY=str(summary), **environment)


def test_the_action_of_a_forge_fails_on_a_leak_and_leaves_reports(
    runs: dict[str, tuple[Path, Json]], tmp_path: Path
) -> None:
    leaking, known = runs["old"][0], tmp_path / "known.json"
    traced(leaking, "--write-baseline", known)
    for options, command, status in (
        ("", f"{leaking}; exit 0", LEAK),
        (f"--baseline {known}", f"{leaking}", 0),
        ("", "exit 7", 7),
    ):
        directory = tmp_path / str(status)
        outcome = run_action(
            leaking.parent,
            tmp_path / f"summary-{status}",
            run=command,
            options=options,
            reports=str(directory / "reports"),
        )
        assert outcome.returncode == status, outcome.stderr
        made = {file.name for file in (directory / "reports").iterdir()}
        assert made == {
            "report.json",
            "report.txt",
            "junit.xml",
            "leaks.sarif",
            "profile.pb.gz",
            "annotations",
        }
        assert ("::error " in outcome.stdout) == (status == LEAK)
        page = (directory / "reports" / "report.txt").read_text()
        assert page in outcome.stdout
        assert (tmp_path / f"summary-{status}").read_text().startswith("```\n" + page.splitlines()[0])


def test_the_workflow_of_this_project_sees_the_leak_of_the_demo(tmp_path: Path) -> None:
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    _, build, gate, keep, check = YAML(typ="safe").load(WORKFLOW)["jobs"]["gate"]["steps"]
    assert gate["uses"] == f"./{ACTION.parent.relative_to(ROOT)}"
    built = run_step(build["run"], tmp_path)
    assert built.returncode == 0, built.stderr
    outcome = run_action(tmp_path, tmp_path / "summary", **gate["with"])
    assert outcome.returncode == LEAK, outcome.stdout + outcome.stderr
    assert (tmp_path / keep["with"]["path"]).is_dir()
    assert run_step(check["run"].replace("${{ steps.gate.outcome }}", "failure"), tmp_path).returncode == 0
    assert run_step(check["run"].replace("${{ steps.gate.outcome }}", "success"), tmp_path).returncode == 1
