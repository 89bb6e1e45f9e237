# SPDX-License-Identifier: Apache-2.0
"""Programs without a leak, which look like one to a tool that only watches mmap and exit."""

from __future__ import annotations

import pytest
from harness import ORPHANED, Target, leaks, mapped, minus, no_losses, reported, reported_areas, trace, traced


@pytest.mark.parametrize(
    "mode", ["detached", "joined", "spawn", "system", "handed-over", "malloc-pool", "late-join"]
)
def test_healthy_program_has_no_leak(mode: str) -> None:
    _, report = trace("healthy", mode, options=["--min-age", 0])

    assert not leaks(report)
    assert not reported(report, "never-joined-thread", "abandoned-stack")
    assert no_losses(report)


def test_forks_are_another_address_space() -> None:
    """A fork maps 1 MiB and exits: none of it is the target's."""
    _, report = trace("healthy", "system", options=["--min-age", 0])

    assert not reported(report, *ORPHANED)
    assert report["calls"]["fork"] >= 70
    assert report["calls"]["clone"] == 0


def test_thread_that_will_be_joined_is_not_accused() -> None:
    """The trace ends between the exit of the threads and their join."""
    _, report = trace("healthy", "later-join", options=["--min-age", 3600])

    assert not leaks(report)
    assert len(reported(report, "not-joined-yet")) >= 8


@pytest.mark.parametrize("mode", ["joined", "malloc-pool"])
def test_all_that_is_reported_is_mapped(mode: str) -> None:
    with Target("healthy", mode) as target, traced(target, "--min-age", 0) as tracer:
        target.run()
        report = tracer.interrupt().report
        stale = minus(reported_areas(report), mapped(target.pid))
    assert not stale
