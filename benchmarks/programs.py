# SPDX-License-Identifier: Apache-2.0
"""How long each of our BPF programs runs under load, by the kernel's own statistics."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.loads import Kind, running
from benchmarks.results import Program
from ebpftrace.capture.stats import RunTime, measured_runs
from ebpftrace.defaults import STACK_BYTES
from ebpftrace.procfs.target import open_target
from ebpftrace.sessions.tracing import begin_loading, open_tracer
from ebpftrace.sessions.watch import Watch
from ebpftrace.unwind.engine import Engine

_PREFIX = "tracepoint__"
_MIN_RUNS = 1000
"""Of fewer the mean says little."""


def measure(kind: Kind, seconds: float, stack_bytes: int = STACK_BYTES) -> list[Program]:
    """Trace that load for a while.  Raises CannotRun, CannotTrace."""
    with ExitStack() as held:
        directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ebpftrace-bench-")))
        load = held.enter_context(running(kind, directory))
        engine = held.enter_context(Engine())
        target = held.enter_context(open_target(load.pid))
        watch = held.enter_context(Watch(target, engine))
        held.enter_context(measured_runs())
        loading = held.enter_context(begin_loading([load.pid], stack_bytes=stack_bytes))
        tracer = held.enter_context(open_tracer([watch], loading))
        watch.attach(tracer)
        before = tracer.run_times()
        load.work(seconds)
        after = tracer.run_times()
    return [
        Program(
            kind=kind.name,
            name=name[len(_PREFIX) :].replace("__", ":"),
            runs=ran.runs - before[name].runs,
            ns_per_run=_per_run(before[name], ran),
        )
        for name, ran in after.items()
        if ran.runs - before[name].runs >= _MIN_RUNS
    ]


def _per_run(before: RunTime, after: RunTime) -> float:
    return (after.nanoseconds - before.nanoseconds) / (after.runs - before.runs)
