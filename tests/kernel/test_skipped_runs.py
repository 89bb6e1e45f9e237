# SPDX-License-Identifier: Apache-2.0
"""The kernel skips runs of our programs: here some of them return at once, as if they had been skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import ROOT, Target, eventually

from ebpftrace.capture import loader, sources
from ebpftrace.capture.tracer import Tracer
from ebpftrace.model import EndedBy
from ebpftrace.procfs.target import open_target
from ebpftrace.sessions.ending import Libcs
from ebpftrace.sessions.leak_watch import LeakWatch
from ebpftrace.sessions.searching import no_searcher
from ebpftrace.sessions.tracing import begin_loading, open_tracer
from ebpftrace.unwind.engine import Engine

WORKERS = 32


def skipping(directory: Path, probe: str, condition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the programs loaded from a copy in which one of them skips runs."""
    bpf = directory / "bpf"
    shutil.copytree(ROOT / "bpf", bpf)
    source = (bpf / "ledger.c").read_text()
    head = f"{probe}\n{{\n"
    assert source.count(head) == 1
    (bpf / "ledger.c").write_text(
        source.replace(head, f"{head}    if ({condition})\n        return PASS_ON;\n")
    )
    monkeypatch.setattr(sources, "bpf_dir", lambda: bpf)
    monkeypatch.setattr(loader, "bpf_dir", lambda: bpf)


@contextmanager
def watched(target: Target) -> Iterator[tuple[LeakWatch, Tracer]]:
    with (
        Engine() as engine,
        open_target(target.pid) as held,
        LeakWatch(held, engine, Libcs(), min_age=0, wants_stacks=False) as watch,
    ):
        watch.read_beforehand()
        with begin_loading([target.pid]) as loading, open_tracer([watch], loading) as tracer:
            watch.attach(tracer)
            yield watch, tracer


def test_who_exited_unseen_is_found_by_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipping(
        tmp_path,
        "TRACEPOINT_PROBE(sched, sched_process_exit)",
        "bpf_get_current_pid_tgid() % 4 == 0",
        monkeypatch,
    )
    with Target("orphans", "kept", WORKERS) as target, watched(target) as (watch, tracer):
        target.run()

        def missed() -> int:
            tracer.find_missed_exits()
            return tracer.read()[watch.space].losses.events

        eventually(lambda: missed() > 0, "the exits that were not seen are found")
        report = watch.report(tracer, EndedBy.INTERRUPT, no_searcher)
    orphans = [orphan for finding in report.findings for orphan in finding.orphans]
    owners = {fact["start"]: fact["owner"] for fact in target.facts("mapped")}
    found = {one.outstanding.mapping.start: one.outstanding.owner for one in orphans}
    tids = {start: owner.id.tid for start, owner in found.items() if owner}
    assert {start: tids.get(start) for start in owners} == owners
    assert report.losses.events == sum(tid % 4 == 0 for tid in owners.values())


@pytest.mark.parametrize("probe", ["CALL_ENTERS(munmap)", "CALL_RETURNS(munmap)"])
def test_a_call_without_its_other_half_is_a_loss(
    probe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping(tmp_path, probe, "(bpf_get_prandom_u32() & 3) == 0", monkeypatch)
    with Target("flood", 100, 1000) as target, watched(target) as (watch, tracer):
        target.run()
        tracer.poll()
        losses = tracer.read()[watch.space].losses
    assert losses.events > 0
