# SPDX-License-Identifier: Apache-2.0
"""What differs between kernels: how registers are reached, and runs of our programs that are skipped.

Linux 7 runs programs at syscall tracepoints preemptibly: while one is preempted, the kernel skips
the same program for others on that CPU (ebpftrace/capture/stats.py).

One tracer for all: where compiling is slow (vmtest/), starting it is most of a test.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from harness import (
    ORPHANED,
    PATIENCE,
    Area,
    Json,
    Target,
    Tracer,
    mapped,
    minus,
    reported,
    reported_areas,
)

MILLISECONDS = int(os.environ.get("EBPFTRACE_FLOOD_MS", "5000"))
NEIGHBOURS = 3
NEIGHBOURS_MILLISECONDS = 600_000
"""They are ended before."""

LEFT_BEHIND = ("abandoned-stack", "never-joined-thread", "not-joined-yet", *ORPHANED)


@dataclass(frozen=True)
class Traced:
    """A target, what was reported of it, and what was mapped in it then."""

    target: Target
    report: Json
    mapped: list[Area]


@contextlib.contextmanager
def neighbours() -> Iterator[None]:
    """Other processes that make the same calls all the time: our programs run for them too."""
    with contextlib.ExitStack() as running:
        for _ in range(NEIGHBOURS):
            running.enter_context(Target("flood", NEIGHBOURS_MILLISECONDS, 0)).go()
        yield


@pytest.fixture(scope="module")
def traced() -> Iterator[dict[str, Traced]]:
    """Four programs traced by one tracer, two of them beside busy neighbours; by name."""
    with contextlib.ExitStack() as running:
        targets = {
            name: running.enter_context(Target(name, *arguments))
            for name, arguments in (
                ("reproducer", (97,)),
                ("never_joined", (31,)),
                ("orphans", ("kept", 200)),
                ("flood", (MILLISECONDS, 0)),
            )
        }
        processes = [option for target in targets.values() for option in ("-p", target.pid)]
        tracer = running.enter_context(Tracer("--until-interrupt", "--min-age", 0, *processes))
        targets["reproducer"].run()
        targets["never_joined"].run()
        with neighbours():
            targets["orphans"].run()
            targets["flood"].run(MILLISECONDS / 1000 + PATIENCE)
        reports = [json.loads(line) for line in tracer.interrupt().stdout.splitlines()]
        assert len(reports) == len(targets)
        yield {
            name: Traced(target, report, mapped(target.pid))
            for (name, target), report in zip(targets.items(), reports)
        }


@pytest.mark.parametrize("name", ["reproducer", "never_joined", "orphans"])
def test_orphans_are_found_unless_counted_as_lost(traced: dict[str, Traced], name: str) -> None:
    found = reported(traced[name].report, *LEFT_BEHIND)
    truth = {fact["start"]: fact for fact in traced[name].target.facts("mapped")}
    for mapping in found:
        fact = truth[int(mapping["start"], 16)]
        assert mapping["bytes"] == fact["length"]
        assert mapping["owner_tid"] in (fact["owner"], None)
    missing = len(truth) - len(found)
    unknown = sum(mapping["owner_tid"] is None for mapping in found)
    # A call is seen at its enter and its exit, a thread at its start and its exit.
    assert missing >= 0
    assert missing + unknown <= traced[name].report["losses"]["events"]


@pytest.mark.parametrize("name", ["reproducer", "never_joined", "orphans"])
def test_stacks_are_whole(traced: dict[str, Traced], name: str) -> None:
    """Registers and memory were copied right: the unwinder comes to the outermost frame."""
    findings = [each for each in traced[name].report["findings"] if each["verdict"] in LEFT_BEHIND]
    assert findings
    for finding in findings:
        assert finding["stack"]["complete"], finding["stack"]
    assert traced[name].report["losses"]["stacks"] == 0


def test_the_mapper_is_named_to_main(traced: dict[str, Traced]) -> None:
    (finding, *_) = traced["reproducer"].report["findings"]
    assert "main" in [frame["function"] for frame in finding["stack"]["frames"]]


@pytest.mark.parametrize("call", ["mmap", "munmap"])
def test_no_call_is_lost_uncounted(traced: dict[str, Traced], call: str) -> None:
    (done,) = traced["flood"].target.facts("flooded")
    report = traced["flood"].report
    assert 0 <= done["pairs"] - report["calls"][call] <= report["losses"]["events"]


def test_nothing_is_reported_that_is_not_mapped(traced: dict[str, Traced]) -> None:
    for each in traced.values():
        assert not minus(reported_areas(each.report), each.mapped)


def test_nothing_is_lost_but_skipped_runs(traced: dict[str, Traced]) -> None:
    """Linux 6.18 too skipped a run now and then."""
    for each in traced.values():
        losses = each.report["losses"]
        assert not any(count for kind, count in losses.items() if kind != "events"), losses
