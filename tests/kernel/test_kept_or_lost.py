# SPDX-License-Identifier: Apache-2.0
"""Who can still free it decides: programs that keep handles and pointers, and twins that lose them.

All are traced by one session, and judged without a trace by ``-d 0`` and ``maps``, which must agree with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, Json, Program, Tracer, eventually, leaks, run_tracer
from programs import compiled

COUNT = 12
KINDS = (
    *("piling", "living", "batch", "fork-join", "result", "pool", "ring", "linked", "list-lost", "regions"),
    "lost",
)
"""Those first that must be at it all through the window, or for a second."""
HEALTHY = ("batch", "fork-join", "result", "pool", "ring", "linked")
_ROOM = 20_000


@dataclass(frozen=True)
class Seen:
    """What the commands said of one running program."""

    traced: Json
    alone: Json
    maps: Json


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Seen]]:
    binary = compiled(tmp_path_factory.mktemp("kept"), "kept")
    with ExitStack() as held:
        programs = {kind: held.enter_context(Program(binary, kind, COUNT)) for kind in KINDS}
        pids = [option for program in programs.values() for option in ("-p", program.pid)]
        with Tracer(*pids, "--until-interrupt", "--max-mappings", _ROOM) as tracer:
            for program in programs.values():
                program.run()
            tasks = Path(f"/proc/{programs['piling'].pid}/task")
            eventually(lambda: len(list(tasks.iterdir())) > 3 * COUNT, "threads pile up for seconds")
            traced = by_pid(tracer.interrupt().stdout)
        alone = by_pid(run_tracer(*pids, "-d", 0, "--json").stdout)
        maps = {pid: looked_at(pid) for pid in (program.pid for program in programs.values())}
        yield {
            kind: Seen(traced[program.pid], alone[program.pid], maps[program.pid])
            for kind, program in programs.items()
        }


def looked_at(pid: int) -> Json:
    """What ``maps`` says."""
    command = [sys.executable, "-m", "ebpftrace", "maps", "-p", str(pid), "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    report: Json = json.loads(ended.stdout)
    return report


def by_pid(text: str) -> dict[int, Json]:
    return {report["target"]["pid"]: report for report in map(json.loads, text.splitlines())}


def counts(report: Json) -> dict[str, int]:
    """Leaks by verdict."""
    found: dict[str, int] = {}
    for finding in leaks(report):
        found[finding["verdict"]] = found.get(finding["verdict"], 0) + finding["count"]
    return found


@pytest.mark.parametrize("kind", HEALTHY)
def test_what_somebody_can_still_free_is_no_leak(seen: dict[str, Seen], kind: str) -> None:
    for report in (seen[kind].traced, seen[kind].alone, seen[kind].maps):
        assert counts(report) == {}
    assert seen[kind].traced["undecided"] == seen[kind].alone["undecided"] == 0


@pytest.mark.parametrize("kind", ["list-lost", "regions", "lost"])
def test_memory_that_can_not_be_freed_is_a_leak_with_its_exact_number(
    seen: dict[str, Seen], kind: str
) -> None:
    report = seen[kind].traced
    assert counts(report) == {"orphaned-mapping": COUNT}
    (finding,) = leaks(report)
    assert finding["certainty"] == "proved"
    assert finding["reach"]["complete"]
    assert finding["reach"]["lost"] + finding["reach"]["kept"] == COUNT


@pytest.mark.parametrize("kind", ["batch", "fork-join"])
def test_all_commands_agree_on_the_threads_not_joined_yet(seen: dict[str, Seen], kind: str) -> None:
    waiting = {"not-joined-yet", "joined-later"}
    for report in (seen[kind].traced, seen[kind].alone, seen[kind].maps):
        found = [finding for finding in report["findings"] if finding["verdict"] in waiting]
        assert sum(finding["count"] for finding in found) >= COUNT - 1
        assert not any(finding["reach"]["lost"] for finding in found)
        places = {holder["where"] for finding in found for holder in finding["reach"]["holders"]}
        assert "stack" in places, f"on that of the thread that joins them: {found}"
        assert places <= {"stack", "register"}


def test_what_a_thread_returns_is_kept_until_it_is_joined(seen: dict[str, Seen]) -> None:
    (finding,) = [one for one in seen["result"].traced["findings"] if one["verdict"] == "handed-over"]
    assert (finding["count"], finding["reach"]["kept"]) == (1, 1)


def test_a_buffer_that_a_kept_one_points_to_is_kept(seen: dict[str, Seen]) -> None:
    (finding,) = [one for one in seen["linked"].traced["findings"] if one["verdict"] == "handed-over"]
    assert (finding["count"], finding["reach"]["kept"]) == (COUNT, COUNT)
    assert "global" in {holder["where"] for holder in finding["reach"]["holders"]}


def test_mappings_of_a_living_owner_that_nothing_points_to(seen: dict[str, Seen]) -> None:
    (finding,) = leaks(seen["living"].traced)
    assert (finding["verdict"], finding["certainty"]) == ("lost-mapping", "likely")
    # The address of the last one may still stand in a register or a dead slot of the frame.
    assert finding["count"] in (COUNT - 1, COUNT)


def test_threads_that_pile_up_are_reported_and_no_leak_after_seconds(seen: dict[str, Seen]) -> None:
    report = seen["piling"].traced
    if report["window"]["seconds"] < 15:
        assert counts(report) == {}
    (finding,) = [one for one in report["findings"] if one["verdict"] == "growing-threads"]
    assert finding["count"] > COUNT
    assert finding["start_routine"] is None
    assert any("in pause" in line for line in finding["evidence"])


def test_without_a_search_nothing_is_proved_and_the_first_line_says_so(tmp_path: Path) -> None:
    with Program(compiled(tmp_path, "kept"), "fork-join", COUNT) as program:
        program.run()
        result = run_tracer("-p", program.pid, "-d", 0, "--no-search", "--fail-on-leak")
    assert result.stdout.startswith(f"CANNOT TELL: {COUNT - 1} stacks of exited threads")
    assert "No leak" not in result.stdout
    assert result.status == 4


def test_what_a_limit_leaves_out_may_hold_what_was_not_found(tmp_path: Path) -> None:
    with Program(compiled(tmp_path, "lists_threads"), "returns", COUNT) as program:
        program.run()
        report = run_tracer("-p", program.pid, "-d", 0, "--search-limit", "4KiB", "--json").report
        whole = run_tracer("-p", program.pid, "-d", 0, "--search-limit", "1GiB", "--json").report
    assert counts(report) == {}
    assert report["undecided"] == COUNT
    assert not report["search"]["complete"]
    assert report["search"]["unsearched_bytes"] > 0
    assert any("searched" in gap for gap in report["search"]["gaps"])
    assert counts(whole) == {"never-joined-thread": COUNT}
