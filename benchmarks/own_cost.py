# SPDX-License-Identifier: Apache-2.0
"""What the tracer itself uses, and how that grows with mappings, threads, calls a second and sites."""

from __future__ import annotations

import math
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from benchmarks.loads import Process
from benchmarks.results import OwnCost
from benchmarks.tools import OURS, Attached, CannotRun, tool_named

_SIZE = re.compile(r"^(\w+):\s+(\d+) kB$", re.MULTILINE)
_LOOK_SECONDS = 0.02
_END_SECONDS = 120.0
_SITES_MAPPINGS = 8000
_TRACES = 3
"""Of these the quickest times are shown: what else the machine does only adds to them."""
_PAUSE_SECONDS = 3.0
"""Before the report of a trace that is made for its times only."""
_SETTLE_SECONDS = 15.0
"""What the tracer does once, when it has attached or seen new sites and mappings, is not its usual share.
It goes on for about ten seconds."""
_CPU_SECONDS = 5.0
"""Over which its share of a core is measured."""


@dataclass(frozen=True)
class Case:
    """What the tracer is given to do."""

    what: str
    amount: float
    load: str
    """Argument of ``load``."""
    before: Optional[tuple[float, float]] = None
    """Command to the load before the tracer attaches ..."""
    traced: Optional[tuple[float, float]] = None
    """... and when it is attached."""
    rate: float = -1.0
    """Operations per second while CPU time is measured, 0 for all it can; negative: none."""


CASES = (
    *(Case("mappings", amount, "hold", traced=(amount, 1)) for amount in (0, 1000, 8000, 65_000)),
    *(Case("threads", amount, "crowd", before=(amount, 0)) for amount in (10, 1000, 10_000)),
    *(Case("mmap and munmap a second", rate, "untouched", rate=rate) for rate in (1000, 10_000, 100_000)),
    Case("mmap and munmap a second", -1, "untouched", rate=0),
    *(Case("sites", amount, "hold", traced=(_SITES_MAPPINGS, amount)) for amount in (1, 100, 1000)),
)


def measure(case: Case) -> OwnCost:
    """Trace processes, one after the other.  Raises CannotRun, LoadDied, OSError."""
    traces = [_trace(case, is_last=turn == _TRACES - 1) for turn in range(_TRACES)]
    return replace(
        traces[-1],
        attach_seconds=min(trace.attach_seconds for trace in traces),
        report_seconds=min(trace.report_seconds for trace in traces),
        detach_seconds=min(trace.detach_seconds for trace in traces),
    )


def _trace(case: Case, is_last: bool) -> OwnCost:
    """Trace one process; only the last one for so long that its share of a core can be measured."""
    with tempfile.TemporaryDirectory(prefix="ebpftrace-bench-") as name, Process(case.load) as load:
        if case.before:
            _do(load, *case.before)
        tracer = Attached(tool_named(OURS), load.pid, Path(name))
        try:
            if case.traced:
                _do(load, *case.traced)
            if case.rate >= 0 and is_last:
                load.command(1000 * (_SETTLE_SECONDS + _CPU_SECONDS), case.rate)
            time.sleep(_SETTLE_SECONDS if is_last else _PAUSE_SECONDS)
            share = _cpu_share(tracer.process.pid) if is_last else math.nan
            if case.rate >= 0 and is_last:
                load.answer()
            files = _file_bytes(tracer.process.pid)
            most = _anonymous_bytes(tracer.process.pid)
            tracer.process.send_signal(signal.SIGINT)
            asked = time.monotonic()
            while (
                not tracer.output.exists()
                and tracer.process.poll() is None
                and time.monotonic() - asked < _END_SECONDS
            ):
                most = max(most, _anonymous_bytes(tracer.process.pid))
                time.sleep(_LOOK_SECONDS)
            reported = time.monotonic()
            if not tracer.output.exists():
                raise CannotRun(
                    f"no report within {_END_SECONDS:.0f} s; its last words: {tracer.last_words()}"
                )
            tracer.process.wait(_END_SECONDS)
            ended = time.monotonic()
        finally:
            tracer.end()
    return OwnCost(
        what=case.what,
        amount=case.amount,
        attach_seconds=tracer.attach_seconds,
        cpu_share=share,
        anonymous_bytes=most,
        pss_bytes=most + files,
        report_seconds=reported - asked,
        detach_seconds=ended - reported,
    )


def _do(load: Process, first: float, second: float) -> None:
    load.command(first, second)
    load.answer()


def _cpu_share(pid: int) -> float:
    began, before = time.monotonic(), _cpu_seconds(pid)
    time.sleep(_CPU_SECONDS)
    return (_cpu_seconds(pid) - before) / (time.monotonic() - began)


def _family(pid: int) -> Iterator[Path]:
    """The directories in /proc of a process and of all that it started."""
    yield Path(f"/proc/{pid}")
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def _cpu_seconds(pid: int) -> float:
    """By the scheduler's own clock (Documentation/scheduler/sched-stats.rst), not in ticks of 10 ms."""
    nanoseconds = 0
    for process in _family(pid):
        for task in (process / "task").iterdir():
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _anonymous_bytes(pid: int) -> int:
    """Anonymous memory, by the kernel's counters (proc(5), status); reading it costs the tracer nothing.

    Walking its page tables, as smaps_rollup does, made its report take half as long again.
    """
    return _sum_of(pid, "status", lambda size: size["RssAnon"])


def _file_bytes(pid: int) -> int:
    """Its share of what is not anonymous; costs a walk of its page tables (proc(5), smaps_rollup)."""
    return _sum_of(pid, "smaps_rollup", lambda size: size["Pss"] - size["Anonymous"])


def _sum_of(pid: int, file: str, figure: Callable[[dict[str, int]], int]) -> int:
    """A figure of a process and of all that it started, from the bytes by name that a file of /proc tells."""
    total = 0
    for process in _family(pid):
        try:
            text = (process / file).read_text()
        except OSError:
            continue
        total += figure({name: int(kib) << 10 for name, kib in _SIZE.findall(text)})
    return total
