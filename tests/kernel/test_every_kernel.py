"""What differs between kernels: how registers are reached, and runs of our programs that are skipped.

Linux 7 runs programs at syscall tracepoints preemptibly: while one is preempted, the kernel skips
the same program for others on that CPU (ebpftrace/kernel/losses.py).  Elsewhere nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from harness import (
    Target,
    fact_areas,
    mapped,
    minus,
    reported,
    reported_areas,
    trace,
    traced,
    union,
)

MILLISECONDS = int(os.environ.get("EBPFTRACE_FLOOD_MS", "5000"))
NEIGHBOURS = 3


def test_stacks_are_whole() -> None:
    """Registers and memory were copied right: the unwinder comes to the outermost frame."""
    _, report = trace("reproducer", 20, options=["--min-age", 0])

    stacks = [finding["stack"] for finding in report["findings"] if finding["verdict"] == "abandoned-stack"]
    assert stacks
    for stack in stacks:
        assert stack["complete"], stack
        assert "main" in [frame["function"] for frame in stack["frames"]]
    assert report["losses"]["stacks"] == 0


@contextlib.contextmanager
def neighbours(*arguments: object) -> Iterator[None]:
    """Other processes that make the same calls all the time: our programs run for them too."""
    with contextlib.ExitStack() as running:
        for _ in range(NEIGHBOURS):
            running.enter_context(Target("flood", *arguments)).go()
        yield


def test_no_call_is_lost_uncounted() -> None:
    with Target("flood", MILLISECONDS, 0) as target, traced(target) as tracer:
        with neighbours(MILLISECONDS, 0):
            target.run(MILLISECONDS / 1000 + 60)
        report = tracer.interrupt().report
    (done,) = target.facts("flooded")
    for call in ("mmap", "munmap"):
        missing = done["pairs"] - report["calls"][call]
        assert 0 <= missing <= report["losses"]["events"], call


def test_report_is_true_between_busy_neighbours() -> None:
    with Target("orphans", "kept", 200) as target, traced(target, "--min-age", 0) as tracer:
        with neighbours(60_000, 0):
            target.run()
        report = tracer.interrupt().report
        stale = minus(reported_areas(report), mapped(target.pid))
    truth = {fact["start"]: fact["owner"] for fact in target.facts("mapped")}
    assert not stale
    for mapping in reported(report, "orphaned-mapping"):
        assert mapping["owner_tid"] == truth[int(mapping["start"], 16)]
    if not report["losses"]["events"]:
        assert union(reported_areas(report, "orphaned-mapping")) == union(fact_areas(target.facts("mapped")))
