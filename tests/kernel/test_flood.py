# SPDX-License-Identifier: Apache-2.0
"""A flood of calls costs the tracer nothing; a table that overflows is counted, never silent.

EBPFTRACE_FLOOD_MS=N makes the flood longer.
"""

from __future__ import annotations

import os

from harness import (
    ORPHANED,
    PATIENCE,
    Json,
    Target,
    fact_areas,
    mapped,
    minus,
    no_losses,
    reported_areas,
    traced,
    union,
)

MILLISECONDS = int(os.environ.get("EBPFTRACE_FLOOD_MS", "3000"))
SLOW_PAIRS_PER_SECOND = 1000


def flood(pairs_per_second: int, least_pairs: int = 0) -> tuple[Json, Json, int]:
    """What the target did, the report, and how often the tracer woke up meanwhile."""
    arguments = (MILLISECONDS, pairs_per_second, least_pairs)
    with Target("flood", *arguments) as target, traced(target) as tracer:
        before = tracer.wake_ups()
        target.run(MILLISECONDS / 1000 + PATIENCE)
        woken = tracer.wake_ups() - before
        report = tracer.interrupt().report
    (done,) = target.facts("flooded")
    return done, report, woken


def test_flood_loses_nothing_and_costs_the_tracer_nothing() -> None:
    slow, slow_report, _ = flood(SLOW_PAIRS_PER_SECOND)
    fast, fast_report, woken = flood(0, least_pairs=10 * slow["pairs"])

    for done, report in ((slow, slow_report), (fast, fast_report)):
        assert report["calls"]["mmap"] == report["calls"]["munmap"] == done["pairs"]
        assert no_losses(report), report["losses"]
        assert not report["findings"]
        assert report["unexplained_bytes"] == 0
    assert woken < fast["pairs"] / 100


def test_overflow_is_counted_and_the_report_stays_true() -> None:
    """200 orphans, a table of 64: the report has what fitted, and says how many did not."""
    workers, rows = 200, 64
    options = ["--min-age", 0, "--max-mappings", rows]
    with Target("orphans", "kept", workers) as target, traced(target, *options) as tracer:
        target.run()
        result = tracer.interrupt()
        report = result.report
        stale = minus(reported_areas(report), mapped(target.pid))
    assert result.status == 0
    truth = union(fact_areas(target.facts("mapped")))
    found = reported_areas(report, *ORPHANED)
    assert not stale
    assert not minus(found, truth)
    assert 0 < len(found) <= rows
    assert report["losses"]["mappings"] >= workers - rows
    assert len(found) + report["losses"]["mappings"] >= workers
    # What was lost is still seen in /proc.
    assert report["unexplained_bytes"] >= (workers - rows) * 16 * 4096


def test_overflow_under_random_calls_keeps_the_report_true() -> None:
    """Rows come, go and are cut while the table is full."""
    options = ["--min-age", 0, "--max-mappings", 64]
    with Target("exact", 1, 500) as target, traced(target, *options) as tracer:
        target.run()
        report = tracer.interrupt().report
        stale = minus(reported_areas(report), mapped(target.pid))
    assert report["losses"]["mappings"] > 0
    assert not stale
