# SPDX-License-Identifier: Apache-2.0
"""When a call began is unknown where the kernel skipped our program at its beginning: the output says so.

Linux 7 skips runs (ebpftrace/capture/stats.py); here the probe is taken off, which is the same everywhere.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from ebpftrace.capture.calls.layout import Filters
from ebpftrace.capture.calls.tracer import CallTracer
from ebpftrace.procfs.tasks import read_task
from ebpftrace.strace.events import Returned

NO_ADVICE = 12345


@contextlib.contextmanager
def tracing_ourselves(**filters: bool) -> Iterator[CallTracer]:
    with CallTracer(Filters(calls=frozenset({"madvise"}), timed=True, **filters)) as tracer:
        tracer.add_threads([read_task(os.getpid(), threading.get_native_id())])
        yield tracer


def advise(area: mmap.mmap, advice: int) -> None:
    with contextlib.suppress(OSError):
        area.madvise(advice)


@pytest.mark.parametrize("only_failed", [False, True])
def test_a_call_whose_beginning_was_not_seen_has_no_earlier_one(only_failed: bool) -> None:
    """Also where the call before was not to be shown."""
    with mmap.mmap(-1, mmap.PAGESIZE) as area, tracing_ourselves(only_failed=only_failed) as tracer:
        advise(area, NO_ADVICE)
        advise(area, mmap.MADV_NORMAL)
        os.close(tracer._installed._events.pop("syscalls:sys_enter_madvise"))
        advise(area, NO_ADVICE)
        calls = [
            event
            for event in tracer.poll()[0]
            if isinstance(event, Returned) and event.arguments[2] == NO_ADVICE
        ]
    seen, unseen = calls
    assert 0 < seen.entered_at < seen.at
    assert unseen.entered_at == 0


def test_time_of_such_a_call_is_not_summed() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as area, tracing_ourselves(counted=True, printed=False) as tracer:
        advise(area, mmap.MADV_NORMAL)
        os.close(tracer._installed._events.pop("syscalls:sys_enter_madvise"))
        (before,) = (total for total in tracer.totals() if total.name == "madvise")
        advise(area, mmap.MADV_NORMAL)
        (after,) = (total for total in tracer.totals() if total.name == "madvise")
    assert (before.calls, after.calls) == (1, 2)
    assert after.ns == before.ns
