# SPDX-License-Identifier: Apache-2.0
"""Stacks that stay mapped after the thread that ran on them: the two cases the tool was made for."""

from __future__ import annotations

import pytest
from harness import ORPHANED, Json, Target, Tracer, leaks, no_losses, reported, trace, traced

CLONE_STACK = 40960
PTHREAD_STACK = (10 << 20) + 4096
"""A stack of 10 MiB and its guard page: what strace shows in the production case."""


def addresses(mappings: list[Json]) -> list[tuple[int, int]]:
    """(start, bytes) of each mapping; a list, so that one reported twice is seen."""
    return sorted((int(mapping["start"], 16), mapping["bytes"]) for mapping in mappings)


def truth(target: Target) -> list[tuple[int, int]]:
    return sorted((fact["start"], fact["length"]) for fact in target.facts("mapped"))


@pytest.mark.parametrize("count", [7, 97, 2003])
def test_reproducer(count: int) -> None:
    target, report = trace("reproducer", count, options=["--min-age", 0])

    mappings = reported(report, "abandoned-stack")
    assert addresses(mappings) == truth(target)
    assert {mapping["bytes"] for mapping in mappings} == {CLONE_STACK}
    assert len(mappings) == count
    children = {fact["start"]: fact["owner"] for fact in target.facts("mapped")}
    for mapping in mappings:
        assert mapping["owner_tid"] == children[int(mapping["start"], 16)]
        assert mapping["mapper_tid"] == target.pid
        assert mapping["owner_name"] == "reproducer"
        assert mapping["mapped_at"] <= mapping["owner_exited_at"]
    found = leaks(report)
    assert {finding["verdict"] for finding in found} == {"abandoned-stack"}
    assert sum(finding["count"] for finding in found) == count
    assert sum(finding["bytes"] for finding in found) == count * CLONE_STACK
    assert not any(finding["before_attach"] for finding in found)
    assert report["calls"]["clone"] == count
    assert report["calls"]["thread_exit"] == count
    assert report["calls"]["mmap"] == count
    assert no_losses(report)


@pytest.mark.parametrize(
    ("program", "verdict"), [("reproducer", "abandoned-stack"), ("never_joined", "not-joined-yet")]
)
def test_a_single_one_may_still_be_kept_by_a_copy_that_nobody_uses(program: str, verdict: str) -> None:
    """The address of the last stack, and the last handle, stand in the frame of who made them."""
    target, report = trace(program, 1, options=["--min-age", 0])

    assert addresses(reported(report, verdict)) == truth(target)
    assert not leaks(report)
    (finding,) = [one for one in report["findings"] if one["verdict"] == verdict]
    assert (finding["reach"]["lost"], finding["reach"]["kept"]) == (0, 1)
    assert finding["certainty"] == "possible"


@pytest.mark.parametrize("count", [7, 31])
def test_production_case(count: int) -> None:
    target, report = trace("never_joined", count, options=["--min-age", 0])

    owners = {fact["start"]: fact["owner"] for fact in target.facts("mapped")}
    mappings = reported(report, "never-joined-thread", "abandoned-stack")
    assert addresses(mappings) == truth(target)
    assert {mapping["bytes"] for mapping in mappings} == {PTHREAD_STACK}
    for mapping in mappings:
        assert mapping["owner_tid"] == owners[int(mapping["start"], 16)]
        assert mapping["owner_name"] == "minute-job"
        assert mapping["mapper_tid"] == target.pid
    assert sum(finding["count"] for finding in leaks(report)) == count
    assert no_losses(report)


def test_orphan_younger_than_min_age_has_just_exited() -> None:
    target, report = trace("reproducer", 5, options=["--min-age", 3600, "--no-search"])

    assert addresses(reported(report, "just-exited")) == truth(target)
    assert not leaks(report)


def test_sharers_of_the_address_space_that_exist_at_attach() -> None:
    """Other thread groups with the same memory are traced from the start, and own what they map."""
    target, report = trace("sharers", options=["--min-age", 0])

    truth_by_start = {fact["start"]: fact["owner"] for fact in target.facts("mapped")}
    # What is left on the stacks of tasks from before the trace counts as stored.
    mappings = reported(report, *ORPHANED)
    owners = {int(mapping["start"], 16): mapping["owner_tid"] for mapping in mappings}
    assert owners == truth_by_start
    assert len(truth_by_start) == len(mappings) == 3
    assert no_losses(report)


def test_sharers_that_are_asked_for_are_one_target() -> None:
    """The first process given stands for the address space, however often it is given."""
    with Target("sharers") as target:
        sharers = [fact["tgid"] for fact in target.facts("sharer")]
        pids = ",".join(map(str, [sharers[0], target.pid, sharers[0], sharers[1]]))
        with Tracer("-p", pids, "--until-interrupt", "--min-age", 0) as tracer:
            target.run()
            report = tracer.wait().report
    assert report["target"]["pid"] == sharers[0]
    for other in (target.pid, sharers[1]):
        assert (
            f"process {other} shares this address space: its calls and mappings are included"
            in report["notes"]
        )
    assert report["calls"]["mmap"] >= 3


def test_threads_are_counted_at_both_ends() -> None:
    with Target("lists_threads", "live", 20) as target, traced(target) as tracer:
        target.run()
        report = tracer.interrupt().report
    assert (report["target"]["threads_start"], report["target"]["threads_end"]) == (1, 21)
