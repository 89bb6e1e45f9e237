# SPDX-License-Identifier: Apache-2.0
"""``growth`` on programs that say themselves which function filled how much of what they keep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import jsonschema
import pytest

SCHEMA = json.loads((harness.ROOT / "ebpftrace/report/schema/growth-1.json").read_text())
GROWTH = (sys.executable, "-m", "ebpftrace", "growth")
MIB = 1 << 20


def documents_of(
    arguments: str, *options: str, program: str = "resident"
) -> tuple[harness.Target, list[dict[str, Any]]]:
    """What ``growth --json`` prints of a run; the first interval ends with it."""
    with harness.Target(program, *arguments.split()) as target:
        growth = subprocess.Popen(
            [*GROWTH, "--json", "-p", str(target.pid), "--until-interrupt", "-i", "0.5", *options],
            cwd=harness.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert growth.stderr is not None
            assert growth.stdout is not None
            stderr, stdout = harness.Lines(growth.stderr), harness.Lines(growth.stdout)
            assert stderr.until(lambda line: line == "attached"), stderr.seen
            target.run()
            growth.send_signal(2)
            stdout.until(None)
            assert growth.wait(harness.PATIENCE) == 0, stderr.seen
        finally:
            growth.kill()
            growth.wait()
        documents = [json.loads(line) for line in stdout.seen]
        for document in documents:
            jsonschema.validate(document, SCHEMA)
        return target, documents


def filled(target: harness.Target) -> dict[str, int]:
    """Bytes that each function filled and the program keeps."""
    return {fact["place"]: fact["bytes"] for fact in target.facts("filled")}


def by_function(resident: dict[str, Any], wanted: dict[str, int]) -> Counter[str]:
    """Bytes of the places that run through each of these functions."""
    found: Counter[str] = Counter()
    for place in resident["places"]:
        functions = [frame["function"] for frame in place["stack"]["frames"]]
        found.update({name: place["bytes"] for name in wanted if name in functions})
    return found


@pytest.mark.parametrize("mode", ["heap", "arena", "pool", "cow", "many", "sizes", "back", "shared", "read"])
def test_each_place_has_what_it_filled(mode: str) -> None:
    target, documents = documents_of(mode)
    truth, resident = filled(target), documents[-1]["resident"]
    assert truth
    total = sum(truth.values())
    # The program's malloc headers, its stacks and pages of libc come on top.
    assert resident["gained"] == pytest.approx(total, rel=0.04)
    assert resident["gained"] - resident["given_back"] == resident["rss_end"] - resident["rss_start"]
    assert sum(place["bytes"] for place in resident["places"]) + resident["no_place"] == resident["gained"]
    assert resident["no_place"] <= 0.02 * total
    assert resident["lost_faults"] == 0
    found = by_function(resident, truth)
    for place, size in truth.items():
        assert found[place] == pytest.approx(size, rel=0.1, abs=total / 20), found
    assert found.most_common(1)[0][0] == max(truth, key=lambda place: truth[place])


def test_intervals_name_no_more_than_was_gained() -> None:
    _, documents = documents_of("heap")
    intervals = [document for document in documents if document["kind"] == "interval"]
    grown = 0
    attributed = 0
    for interval in intervals:
        grown += interval["rss_change"]
        if interval["rss_causes"] is not None:
            part = sum(cause["bytes"] for cause in interval["rss_causes"])
            assert part <= max(grown, 0)
            attributed += part
            grown = 0
    # What came after the last interval is in the summary alone.
    assert all("leak_" in json.dumps(cause) for one in intervals for cause in (one["rss_causes"] or ())[:1])
    assert attributed >= 0


def test_what_mremap_has_moved_has_no_place() -> None:
    """Its faults were at other addresses."""
    _, documents = documents_of("moved")
    resident = documents[-1]["resident"]
    assert resident["gained"] == pytest.approx(48 * MIB, rel=0.04)
    assert resident["no_place"] >= 40 * MIB
    assert resident["kinds"][0]["why"] == "no-fault"


def test_without_faults_nothing_is_said_of_them() -> None:
    _, documents = documents_of("heap", "--no-rss")
    assert documents[-1]["resident"] is None
    assert all(one["rss_causes"] is None for one in documents if one["kind"] == "interval")


def test_what_a_pool_gave_back_is_seen() -> None:
    _, documents = documents_of("pool")
    places = documents[-1]["resident"]["places"]
    (pool,) = [one for one in places if "fill_pool" in json.dumps(one["stack"])]
    assert pool["touched"] == pytest.approx(64 * MIB, rel=0.1)
    assert pool["kept"] == pool["bytes"] == 0


def test_a_huge_page_is_not_taken_for_a_small_one() -> None:
    _, documents = documents_of("huge", "--sample", "1")
    resident = documents[-1]["resident"]
    found = by_function(resident, {"fill_huge": 0})
    assert found["fill_huge"] == pytest.approx(64 * MIB, rel=0.02)


def test_a_command_from_its_first_instruction(tmp_path: Path) -> None:
    folded, page = tmp_path / "folded", tmp_path / "page"
    program = "kept = [bytes(1000) for _ in range(40_000)]\ninput()\n"
    growth = subprocess.Popen(
        [*GROWTH, "--json", "-o", page, "-i", "0.2", "--folded", folded, "--", sys.executable, "-c", program],
        cwd=harness.ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # A reading of smaps follows each of these lines before the next one.
        harness.eventually(lambda: len(large(page)) > 1, "two lines of a process that has filled its memory")
        _, stderr = growth.communicate("\n", harness.PATIENCE)
        assert growth.returncode == 0, stderr
    finally:
        growth.kill()
    summary = json.loads(page.read_text().splitlines()[-1])
    jsonschema.validate(summary, SCHEMA)
    resident = summary["resident"]
    assert resident["gained"] >= 40_000_000
    assert resident["no_place"] < 0.1 * resident["gained"]
    lines = folded.read_text().splitlines()
    weights = [int(line.rpartition(" ")[2]) for line in lines]
    assert sum(weights) == resident["gained"]
    assert weights == sorted(weights, reverse=True)


def large(page: Path) -> list[str]:
    """The lines of intervals, whole ones, at whose end 40 MB are resident."""
    lines = page.read_text().rpartition("\n")[0].splitlines() if page.exists() else []
    return [line for line in lines if json.loads(line).get("rss", 0) >= 40_000_000]


def test_a_program_that_fills_nothing_gains_nothing() -> None:
    with harness.Target("resident", "heap") as target:
        done = subprocess.run(
            [*GROWTH, "-p", str(target.pid), "-d", "0.5", "-q"],
            cwd=harness.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "RSS by smaps: 0 B became resident" in done.stdout
        target.run()


def test_a_file_that_cannot_be_written_is_refused_before_the_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [*GROWTH, "-p", str(os.getpid()), "--folded", tmp_path / "missing" / "file"],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "attached" not in done.stderr
    assert "there is no directory" in done.stderr


@pytest.mark.parametrize("threads", [0, 3])
def test_what_malloc_keeps_free(threads: int) -> None:
    target, documents = documents_of(f"{threads} 4000", program="malloc_free")
    ((freed,), free) = target.facts("freed"), documents[-1]["resident"]["malloc_free"]
    assert free["complete"]
    assert free["arenas"] == freed["arenas"]
    # The rest is at the tops of the arenas: malloc asks the kernel for 132 KiB at least (M_TOP_PAD).
    assert freed["bytes"] <= free["bytes"] <= freed["bytes"] + freed["arenas"] * 256 * 1024
    assert free["trimmable"] == pytest.approx(freed["bytes"], rel=0.02)
