# SPDX-License-Identifier: Apache-2.0
"""A trace, ``-d 0``, ``maps`` and ``scan`` say the same of the same programs, as far as each can see."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, TARGETS, Json, Program, Target, Tracer, eventually, run_tracer
from programs import MUSL, compiled

COUNT = 12
PROGRAMS = {
    "lost handles": ("never_joined", COUNT),
    "kept handles": ("kept", "fork-join", COUNT),
    "lost buffers": ("kept", "lost", COUNT),
    "kept buffers": ("kept", "linked", COUNT),
    "reused stacks": ("kept", "pool", COUNT),
}
LEAKS = {"lost handles": {"never-joined-thread": COUNT}, "lost buffers": {"orphaned-mapping": COUNT}}
"""Of all others there is none."""
WAITING = {"kept handles": COUNT - 1}
"""Exited threads that can still be joined: the first one runs until the end."""
_OF_THREADS = ("never-joined-thread", "not-joined-yet", "joined-later")


@dataclass(frozen=True)
class Answer:
    """What each command said of one program: findings, but for ``scan``."""

    traced: list[Json]
    alone: list[Json]
    maps: list[Json]
    scan: Json


@pytest.fixture(scope="module")
def printed() -> Iterator[dict[str, Answer]]:
    with ExitStack() as held:
        programs = {name: held.enter_context(Target(*words)) for name, words in PROGRAMS.items()}
        pids = [option for program in programs.values() for option in ("-p", program.pid)]
        with Tracer(*pids, "--until-interrupt", "--max-mappings", 20_000) as tracer:
            for program in programs.values():
                program.run()
            traced = findings_by_pid(tracer.interrupt().stdout)
        alone = findings_by_pid(run_tracer(*pids, "-d", 0, "--json").stdout)
        maps = {program.pid: asked("maps", "-p", program.pid)["findings"] for program in programs.values()}
        scans: dict[int, Json] = {}

        def all_were_read() -> bool:
            """Programs of other tests that leak may use up the time that a scan has."""
            scans.update((one["pid"], one) for one in asked("scan", "--top", 100_000)["processes"])
            wanted = [programs["lost handles"].pid, programs["kept handles"].pid]
            return all(scans[pid]["exited_threads"] and not scans[pid]["undecided_threads"] for pid in wanted)

        eventually(all_were_read, "a scan has the time to read the lists of these")
        yield {
            name: Answer(traced[program.pid], alone[program.pid], maps[program.pid], scans[program.pid])
            for name, program in programs.items()
        }


def asked(*words: object) -> Json:
    command = [sys.executable, "-m", "ebpftrace", *map(str, words), "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    answer: Json = json.loads(ended.stdout)
    return answer


def findings_by_pid(text: str) -> dict[int, list[Json]]:
    return {report["target"]["pid"]: report["findings"] for report in map(json.loads, text.splitlines())}


def leaks(findings: list[Json]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding["verdict"]] += finding["count"] if finding["leak"] else 0
    return +counts


def of_threads(findings: list[Json]) -> Counter[bool]:
    """Exited threads, by whether they are a leak."""
    counts: Counter[bool] = Counter()
    for finding in findings:
        if finding["verdict"] in _OF_THREADS:
            counts[finding["leak"]] += finding["count"]
    return counts


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_trace_finds_exactly_what_is_lost(printed: dict[str, Answer], name: str) -> None:
    assert leaks(printed[name].traced) == Counter(LEAKS.get(name, {}))
    assert not any(finding["undecided"] for finding in printed[name].traced)


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_say_the_same_of_exited_threads(printed: dict[str, Answer], name: str) -> None:
    leaked = LEAKS.get(name, {}).get("never-joined-thread", 0)
    truth = +Counter({True: leaked, False: WAITING.get(name, 0)})
    one = printed[name]
    assert of_threads(one.traced) == of_threads(one.alone) == of_threads(one.maps) == truth
    if truth:
        assert one.scan["exited_threads"] == sum(truth.values())
        assert one.scan["leaked_threads"] == leaked
    else:
        assert not one.scan["exited_threads"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_a_trace_nothing_is_called_a_leak_that_a_trace_does_not_find(
    printed: dict[str, Answer], name: str
) -> None:
    found = leaks(printed[name].traced)
    for findings in (printed[name].alone, printed[name].maps):
        assert not leaks(findings) - found
        assert not any(finding["undecided"] for finding in findings)


@pytest.mark.parametrize("name", ["lost handles", "kept handles"])
def test_all_are_equally_certain(printed: dict[str, Answer], name: str) -> None:
    one = printed[name]
    certainties = {
        finding["certainty"]
        for findings in (one.traced, one.alone, one.maps)
        for finding in findings
        if finding["verdict"] in _OF_THREADS
    }
    assert certainties == ({"proved"} if name == "lost handles" else {"possible"})


def test_threads_of_musl_that_exited_behind_its_back_do_not_keep_each_other(tmp_path: Path) -> None:
    """musl links descriptors in a ring, and nobody took theirs out: only links of live threads keep."""
    with Program(compiled(tmp_path, "lists_threads", MUSL), "raw", COUNT) as program:
        with Tracer("-p", program.pid, "--until-interrupt") as tracer:
            program.run()
            traced = tracer.interrupt().report["findings"]
        alone = run_tracer("-p", program.pid, "-d", 0, "--json").report["findings"]
        maps = asked("maps", "-p", program.pid)["findings"]
    for findings in (traced, alone, maps):
        (finding,) = findings
        assert (finding["verdict"], finding["count"]) == ("never-joined-thread", COUNT)
        assert (finding["leak"], finding["certainty"]) == (True, "proved")
        assert finding["reach"]["kept"] <= 2


def test_areas_of_go_that_look_like_stacks_are_none(tmp_path: Path) -> None:
    """Its runtime reserves memory for tables and uses pieces of it, with guards below."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    binary = tmp_path / "go"
    subprocess.run(
        ["go", "build", "-o", binary, TARGETS / "verdict_threads.go"],
        env={**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"},
        check=True,
    )
    with Program(binary, 4) as program:
        with Tracer("-p", program.pid, "--until-interrupt") as tracer:
            program.run()
            traced = tracer.interrupt().report
        alone = run_tracer("-p", program.pid, "-d", 0, "--json").report
        maps = asked("maps", "-p", program.pid)
    assert "stack-shaped" in maps["classes"], "else this test shows nothing"
    assert alone["undecided"] == traced["undecided"] == 0
    assert maps["findings"] == alone["findings"] == []
    assert not any(finding["leak"] for finding in traced["findings"])
