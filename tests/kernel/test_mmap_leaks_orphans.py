# SPDX-License-Identifier: Apache-2.0
"""Memory that a thread mapped and left behind, and what others then do to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from harness import (
    ORPHANED,
    Json,
    Target,
    fact_areas,
    leaks,
    mapped,
    minus,
    no_losses,
    pieces,
    reported,
    reported_areas,
    size,
    trace,
    traced,
    union,
)

WORKERS = 7
ATTEMPTS = 4
"""At orphans that come all over the window."""


def orphaned(report: Json) -> list[Json]:
    return reported(report, *ORPHANED)


def spread(report: Json) -> float:
    """The part of the window from the first orphan to the last; a machine that hesitates makes it small."""
    made = [datetime.fromisoformat(mapping["mapped_at"]) for mapping in orphaned(report)]
    return (max(made) - min(made)).total_seconds() / float(report["window"]["seconds"])


MODES = ["kept", "hole", "moved", "overlaid", "unmapped", "destroyed"]
MODES += ["undone", "half-moved", "tagged", "stuck", "doubled", "emptied", "shrunk"]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_of_an_orphan(mode: str, tmp_path: Path) -> None:
    dump = tmp_path / "ledger.json"
    target, report = trace("orphans", mode, WORKERS, options=["--min-age", 0, "--dump-ledger", dump])

    truth = fact_areas(target.facts("mapped"))
    found = reported_areas(report, *ORPHANED)
    assert sorted(found) == sorted(truth)
    ledger = json.loads(dump.read_text())
    assert (ledger["phantom_bytes"], ledger["unexplained_bytes"]) == (0, 0)
    assert sum(mapping["bytes"] for mapping in orphaned(report)) == size(truth)
    owners = {fact["start"]: fact["owner"] for fact in target.facts("mapped")}
    for mapping in orphaned(report):
        for start, _ in pieces(mapping):
            assert mapping["owner_tid"] == mapping["mapper_tid"] == owners[start]
    assert no_losses(report)


def test_a_call_that_fails_is_counted_apart_and_named_where_it_matters() -> None:
    _, report = trace("orphans", "stuck", WORKERS, options=["--min-age", 0])

    assert report["calls"]["failed"] == [{"call": "munmap", "error": "EINVAL", "count": WORKERS}]
    evidence = [line for finding in report["findings"] for line in finding["evidence"]]
    lines = [line for line in evidence if line.startswith("munmap was called on")]
    assert sum(int(line.split()[4]) for line in lines) == WORKERS
    assert all(line.endswith("of them and failed: EINVAL") for line in lines)


def test_hole_leaves_one_mapping_of_two_pieces() -> None:
    _, report = trace("orphans", "hole", 1, options=["--min-age", 0])

    (mapping,) = orphaned(report)
    (start, _), (_, end) = pieces(mapping)
    assert (int(mapping["start"], 16), int(mapping["end"], 16)) == (start, end)
    assert mapping["bytes"] == size(pieces(mapping)) == 13 * 4096


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """Bytes of a huge TLB page, of which as many as there are workers are free."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    if not os.access(pool, os.W_OK):
        pytest.skip("the number of huge pages can't be set")
    before = pool.read_text()
    try:
        pool.write_text(str(int(before) + WORKERS))
        figures = re.findall(r"^(\S+): +(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
        meminfo = {name: int(value) for name, value in figures}
        if meminfo.get("HugePages_Free", 0) < WORKERS:
            pytest.skip("no huge pages to be had")
        yield meminfo["Hugepagesize"] << 10
    finally:
        pool.write_text(before)


def test_huge_pages_of_an_orphan_are_memory_that_it_takes(huge_pages: int) -> None:
    target, report = trace("orphans", "huge", WORKERS, options=["--min-age", 0])

    assert sorted(reported_areas(report, *ORPHANED)) == sorted(fact_areas(target.facts("mapped")))
    assert {mapping["rss_bytes"] for mapping in orphaned(report)} == {huge_pages}
    found = [finding for finding in report["findings"] if finding["verdict"] in ORPHANED]
    assert sum(finding["rss_bytes"] for finding in found) == WORKERS * huge_pages
    assert no_losses(report)


def test_orphans_that_grow_in_number_are_a_leak() -> None:
    for _ in range(ATTEMPTS):
        _, report = trace("orphans", "kept", 40, 50, options=["--min-age", 0])
        if spread(report) > 0.5:
            break

    found = [finding for finding in leaks(report) if finding["verdict"] in ORPHANED]
    assert sum(finding["count"] for finding in found) == 40


def test_single_orphan_is_reported_but_not_called_a_leak() -> None:
    _, report = trace("orphans", "kept", 1, options=["--min-age", 0])

    assert len(orphaned(report)) == 1
    assert not leaks(report)


def test_group_leader_is_gone() -> None:
    """/proc/PID/maps of such a process is empty; each live task still has its own."""
    with Target("orphans", "leader-gone", WORKERS) as target, traced(target, "--min-age", 0) as tracer:
        target.run()
        report = tracer.interrupt().report
        stale = minus(reported_areas(report), mapped(target.pid))
    assert not stale
    assert union(reported_areas(report, *ORPHANED)) == union(fact_areas(target.facts("mapped")))
    assert report["memory"]["virt_end"] > size(fact_areas(target.facts("mapped")))
    assert no_losses(report)
