# SPDX-License-Identifier: Apache-2.0
"""The production case in its real size: 30,000 threads that nobody joined."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Program, leaks, run_tracer, traced
from programs import compiled

THREADS, BEFORE = 30_000, 15_000
STACK = 16 << 10
MAPPINGS = 2 * THREADS + 1000
"""Each stack and each guard is one."""
PATIENCE = 240.0


def test_thirty_thousand_threads(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if limit < MAPPINGS:
        pytest.skip(f"vm.max_map_count is {limit}: {THREADS} stacks with guards do not fit")
    with Program(compiled(tmp_path, "lists_threads"), "returns", THREADS, STACK, BEFORE) as program:
        with traced(program, "--min-age", 0) as tracer:
            said = f"before the trace: {BEFORE:,} threads have exited and are not joined so far"
            tracer.wait_to_say(said)
            program.run(PATIENCE)
            report = tracer.interrupt().report
        alone = run_tracer("-p", program.pid, "-d", 0, "--json", "--min-age", 0).report
        reported = {fact["start"] for fact in program.facts("thread")}
    (both,) = leaks(report)
    assert both["count"] == THREADS
    assert f"{BEFORE:,} of them exited before the trace began" in both["evidence"]
    (finding,) = leaks(alone)
    assert finding["start_routine"]["function"] == "returns"
    assert {int(mapping["start"], 16) for mapping in finding["mappings"]} == reported
    assert len(finding["mappings"]) == finding["count"] == THREADS
