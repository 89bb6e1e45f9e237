# SPDX-License-Identifier: Apache-2.0
"""Byte for byte: what the ledger says is mapped is what the kernel says is mapped.

The ledger is dumped before it is checked against /proc, so that nothing is put right by the check;
the target is quiet by then.  EBPFTRACE_EXACT_SEEDS=N and EBPFTRACE_EXACT_MS=N make the run longer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness import (
    PATIENCE,
    Area,
    Json,
    Target,
    fact_areas,
    kernel_skips_runs,
    ledger_areas,
    mapped,
    minus,
    reported_areas,
    size,
    traced,
    union,
    within,
)

SEEDS = int(os.environ.get("EBPFTRACE_EXACT_SEEDS", "10"))
MILLISECONDS = int(os.environ.get("EBPFTRACE_EXACT_MS", "2000"))
CALM_US = 20_000
"""Between sixteen calls of a thread: what comes in the whole window fits into the kernel's buffer."""


def mapper_areas(ledger: Json) -> dict[int, list[Area]]:
    """What each thread mapped; what nobody was seen to map is under 0, as in the target's thread lists."""
    areas: dict[int, list[Area]] = {0: [tuple(area) for area in ledger["baseline"]]}
    for mapping in ledger["mappings"]:
        areas.setdefault(mapping["mapper_tid"] or 0, []).extend(tuple(piece) for piece in mapping["pieces"])
    return areas


def run(seed: int, rest: int, dump: Path) -> tuple[Target, list[Area], Json]:
    """The target, what was mapped in it at the end, and the report; the ledger is in ``dump``."""
    options = ["--min-age", 0, "--dump-ledger", dump]
    with Target("exact", seed, MILLISECONDS, rest) as target, traced(target, *options) as tracer:
        target.run(MILLISECONDS / 1000 + PATIENCE)
        report = tracer.interrupt().report
        truth = mapped(target.pid)
    assert not minus(reported_areas(report), truth)
    return target, truth, report


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_ledger_is_what_the_kernel_has(seed: int, tmp_path: Path) -> None:
    dump = tmp_path / "ledger.json"
    target, truth, report = run(seed, 0, dump)
    if kernel_skips_runs() and report["losses"]["events"]:
        pytest.skip(f"the kernel skipped {report['losses']['events']} runs: the report is true, not exact")
    if report["losses"]["events"]:
        # A tracer that gets no CPU for seconds can't keep up with all that two CPUs can do.
        target, truth, report = run(seed, CALM_US, dump)
    ledger = json.loads(dump.read_text())
    # Stacks are copied while the rate allows; the ledger itself loses nothing at any rate.
    for losses in (report["losses"], ledger["losses"]):
        assert (losses["events"], losses["mappings"], losses["threads"]) == (0, 0, 0)

    held = target.facts("holds")
    windows = fact_areas(target.facts("window"))
    shared = fact_areas(target.facts("shared"))
    thread_lists = union(fact_areas(held))
    assert not minus(thread_lists, truth), "the target's thread lists are wrong, not the tracer"
    assert not minus(within(truth, windows), thread_lists), (
        "the target's thread lists are wrong, not the tracer"
    )

    # Outside the shared area no two calls on the same bytes overlap in time: raw and exact.
    known = ledger_areas(ledger)
    assert minus(minus(known, truth), shared) == [], "in the ledger, not in /proc"
    assert minus(minus(truth, known), shared) == [], "in /proc, not in the ledger"
    # In it, what calls that ran at the same time did is not known; but it is known how much.
    assert ledger["phantom_bytes"] == size(minus(known, truth))
    assert ledger["unexplained_bytes"] == report["unexplained_bytes"] == size(minus(truth, known))

    mappers = mapper_areas(ledger)
    wrong = [fact for fact in held if minus(fact_areas([fact]), mappers.get(fact["mapper"], []))]
    assert not wrong, "bytes that the ledger gives to another thread"
