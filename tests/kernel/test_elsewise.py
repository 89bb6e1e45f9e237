# SPDX-License-Identifier: Apache-2.0
"""Memory that other calls than mmap map, or that the kernel makes larger than they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import Json, fact_areas, no_losses, pieces, reported, trace

COUNT = 7
FILES = {"shared": "/SYSV00000000 (deleted)", "aio": "/[aio] (deleted)", "down": None}


def left_by_workers(report: Json, target_pid: int) -> list[Json]:
    return [one for one in reported(report) if one["mapper_tid"] == one["owner_tid"] != target_pid]


@pytest.mark.parametrize("mode", list(FILES))
def test_it_is_the_callers_in_its_whole_size(mode: str) -> None:
    target, report = trace("elsewise", mode, COUNT, options=["--min-age", 0])

    facts = target.facts("mapped")
    owners = {fact["start"]: fact["owner"] for fact in facts}
    found = [one for one in left_by_workers(report, target.pid) if pieces(one)[0][0] in owners]
    assert {pieces(one)[0][0]: one["owner_tid"] for one in found} == owners
    assert {one["file"] for one in found} == {FILES[mode]}
    if mode != "aio":  # how large a ring is, is the kernel's affair
        assert sorted(piece for one in found for piece in pieces(one)) == sorted(fact_areas(facts))
    assert report["unexplained_bytes"] == 0
    assert no_losses(report)


def test_what_was_ended_is_gone() -> None:
    target, report = trace("elsewise", "ended", COUNT, options=["--min-age", 0])

    assert not [one for one in left_by_workers(report, target.pid) if one["file"]]
    assert report["unexplained_bytes"] == 0
    assert no_losses(report)


def test_a_page_of_hugetlbfs_is_a_huge_one() -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    try:
        pool.write_text(str(int(before) + COUNT))
        figures = dict(re.findall(r"^(\S+): +(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE))
        if int(figures["HugePages_Free"]) < COUNT:
            pytest.skip("no huge pages to be had")
        target, report = trace("elsewise", "huge", COUNT, options=["--min-age", 0])
    finally:
        pool.write_text(before)
    huge = int(figures["Hugepagesize"]) << 10
    starts = {fact["start"] for fact in target.facts("mapped")}
    found = [one for one in reported(report) if pieces(one)[0][0] in starts]
    assert [one["bytes"] for one in found] == [huge] * COUNT
    assert {one["file"] for one in found} == {"/memfd:huge (deleted)"}
    assert report["unexplained_bytes"] == 0
