# SPDX-License-Identifier: Apache-2.0
"""What tracing cost, as the tool tells it after a run."""

from __future__ import annotations

import os

from harness import Target, traced


def test_run_time_is_reported_where_it_is_asked_for() -> None:
    with Target("flood", 500, 0) as target, traced(target, "--cost") as tracer:
        target.run()
        report = tracer.interrupt().report
    cost = report["cost"]
    # Each call of the target ran one of our programs or two.
    assert cost["bpf_runs"] >= report["calls"]["mmap"] + report["calls"]["munmap"]
    assert 0 < cost["bpf_seconds"] < report["window"]["seconds"] * (os.cpu_count() or 1)


def test_nothing_is_measured_unless_asked_for() -> None:
    """Not reported where others have the kernel measure all programs."""
    with Target("flood", 100, 0) as target, traced(target) as tracer:
        target.run()
        cost = tracer.interrupt().report["cost"]
    assert cost["bpf_seconds"] is None
    assert cost["bpf_runs"] is None
