# SPDX-License-Identifier: Apache-2.0
"""A thread's newest mapping, which the kernel side keeps with the thread: read, handed over, flooded.

These tests read the tables themselves, while the programs run: no report would show what is half written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import Program, Target, fact_areas, kernel_skips_runs

from ebpftrace.capture.kernel_events import KernelEvent
from ebpftrace.capture.snapshot import Snapshot
from ebpftrace.capture.tracer import Tracer, code_ranges
from ebpftrace.model import Row
from ebpftrace.procfs.maps import read_heap_end, read_maps
from ebpftrace.procfs.tasks import list_tasks
from ebpftrace.sessions.tracing import begin_loading

pytestmark = pytest.mark.filterwarnings("ignore:not a bytes object:DeprecationWarning:bcc")

LENGTH = 4 * 4096
ROUNDS = 20_000
READINGS = 200
FOREVER_MS = 10**9


@contextmanager
def watched(target: Program) -> Iterator[tuple[Tracer, list[KernelEvent]]]:
    """Our programs on all threads of the target, and the events that came of it."""
    events: list[KernelEvent] = []
    with (
        begin_loading([target.pid]) as loading,
        Tracer(loading, lambda _, event: events.append(event), lambda *_: None) as tracer,
    ):
        vmas = read_maps(target.pid)
        space = tracer.add_space(target.pid, read_heap_end(target.pid), code_ranges(vmas))
        tracer.add_threads(space, list_tasks(target.pid))
        tracer.baseline_read(space, vmas)
        yield tracer, events


def read(tracer: Tracer) -> Snapshot:
    (snapshot,) = tracer.read().values()
    tracer.poll()
    return snapshot


@pytest.mark.parametrize("replace", [[], ["replace"]], ids=["unmapped", "replaced"])
def test_what_others_unmap_is_reported_once_not_each_time(replace: list[str]) -> None:
    with Target("handover", ROUNDS, *replace) as target, watched(target) as (tracer, events):
        target.run()
        snapshot = read(tracer)
        (mapped,) = fact_areas(target.facts("mapped"))
    if kernel_skips_runs() and snapshot.losses.events:
        pytest.skip(
            f"the kernel skipped {snapshot.losses.events} runs: what follows each of them is not exact"
        )
    assert snapshot.calls.munmap == ROUNDS
    assert len(events) < 10
    assert [(row.start, row.start + row.length) for row in snapshot.rows] == [mapped]


def test_what_a_thread_keeps_is_read_whole_or_not_at_all() -> None:
    rows: list[Row] = []
    lost = 0
    with Target("flood", FOREVER_MS, 0) as target, watched(target) as (tracer, _):
        target.go()
        while len(rows) < READINGS:
            snapshot = read(tracer)
            rows += snapshot.rows
            lost += snapshot.losses.mappings
    assert {(row.length, row.prot, row.flags, row.mapper.tid) for row in rows} == {
        (LENGTH, 3, 0x22, target.pid)
    }
    assert all(row.since == row.made_at for row in rows)
    assert not lost
