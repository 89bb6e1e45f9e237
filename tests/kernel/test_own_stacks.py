# SPDX-License-Identifier: Apache-2.0
"""Stacks that a program maps itself: which thread each was, what is left of it, and what is none."""

from __future__ import annotations

import pytest
from harness import ORPHANED, Json, fact_areas, no_losses, pieces, reported, size, trace

COUNT = 12


def owners(facts: list[Json]) -> dict[int, int]:
    return {fact["start"]: fact["owner"] for fact in facts}


@pytest.mark.parametrize("mode", ["vfork", "guard-left", "guard-fixed", "guard-over", "switched", "visited"])
def test_a_stack_belongs_to_who_ran_on_it_last(mode: str) -> None:
    target, report = trace("own_stacks", mode, COUNT, options=["--min-age", 0])

    facts = [fact for fact in target.facts("mapped") if fact["owner"] != fact["mapper"]]
    assert len(facts) == COUNT
    found = [mapping for mapping in reported(report) if mapping["owner_tid"] != target.pid]
    areas = [piece for mapping in found for piece in pieces(mapping)]
    # A thread that ended by a bare exit leaves the stack that glibc mapped for it, too.
    truth = fact_areas(facts)
    assert sorted(area for area in areas if area in truth) == sorted(truth)
    own = owners(facts)
    for mapping in found:
        for start, _ in pieces(mapping):
            if start in own:
                assert mapping["owner_tid"] == own[start]
                assert mapping["mapper_tid"] == target.pid
    assert report["unexplained_bytes"] == 0
    assert no_losses(report)


def test_what_is_left_of_a_stack_is_counted_as_what_is_left() -> None:
    target, report = trace("own_stacks", "guard-left", COUNT, options=["--min-age", 0])

    found = reported(report, "abandoned-stack")
    assert sum(mapping["bytes"] for mapping in found) == size(fact_areas(target.facts("mapped")))
    assert {mapping["made_bytes"] for mapping in found} == {17 * 4096}


@pytest.mark.parametrize("mode", ["lent", "reused"])
def test_nothing_is_left_behind(mode: str) -> None:
    _, report = trace("own_stacks", mode, COUNT, options=["--min-age", 0])

    assert not reported(report, "abandoned-stack", *ORPHANED)
    assert no_losses(report)


def test_a_child_process_is_no_thread() -> None:
    _, report = trace("own_stacks", "forks", COUNT)

    calls = report["calls"]
    assert (calls["clone"], calls["thread_exit"], calls["fork"]) == (0, 0, 3 * COUNT)
    assert not report["findings"]
    assert no_losses(report)
