# SPDX-License-Identifier: Apache-2.0
"""As much as a process can have or do: nothing is lost, the tracer's memory stays bounded, the target lives.

EBPFTRACE_LOAD=N makes each load N times as large; 10 comes near to what Linux allows by default.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness import ORPHANED, PATIENCE, Json, Target, Tracer, no_losses, reported, traced

TIMES = int(os.environ.get("EBPFTRACE_LOAD", "1"))
MAPPINGS = 6500 * TIMES
THREADS = 1000 * TIMES
STARTS = 5000 * TIMES
FLOODERS = 8
FLOOD_MS = 2000 * TIMES

MAX_BYTES = 80 << 20
BYTES_FOR_A_MAPPING = 300
BYTES_FOR_A_THREAD = 4096


def anonymous_bytes(tracer: Tracer) -> int:
    status = Path(f"/proc/{tracer.pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found.group(1)) * 1024


def loaded(*arguments: object, extra: int = 0) -> tuple[Target, Json]:
    """Traces a load, which must leave the target alive and the tracer small before its report."""
    with Target("load", *arguments) as target, traced(target, "--min-age", 0) as tracer:
        target.run(TIMES * PATIENCE)
        assert anonymous_bytes(tracer) <= MAX_BYTES + extra
        report = tracer.interrupt().report
        assert target.process.poll() is None
        assert target.end() == 0
    assert no_losses(report), report["losses"]
    return target, report


def is_exact(report: Json) -> bool:
    return not report["losses"]["events"]


def test_as_many_mappings_before_as_in_the_trace() -> None:
    _, report = loaded("mappings", MAPPINGS, extra=2 * MAPPINGS * BYTES_FOR_A_MAPPING)
    if is_exact(report):
        assert len(reported(report, *ORPHANED)) == MAPPINGS
        assert report["unexplained_bytes"] == 0


def test_many_threads_that_live() -> None:
    _, report = loaded("threads", THREADS, extra=THREADS * BYTES_FOR_A_THREAD)
    assert not reported(report, *ORPHANED)
    if is_exact(report):
        assert report["calls"]["mmap"] == THREADS


def test_threads_are_created_and_end_all_the_time() -> None:
    _, report = loaded("births", STARTS, 0)
    if is_exact(report):
        assert report["calls"]["clone"] == report["calls"]["thread_exit"] == STARTS
    assert not reported(report, *ORPHANED)


def test_many_threads_flood() -> None:
    target, report = loaded("flood", FLOODERS, FLOOD_MS)
    (flooded,) = target.facts("flooded")
    if is_exact(report):
        for call in ("mmap", "munmap"):
            assert flooded["pairs"] <= report["calls"][call] <= flooded["pairs"] + 10 * FLOODERS
