# SPDX-License-Identifier: Apache-2.0
"""The parts that all JSON formats share: times, targets, calls, frames and stacks."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Optional

from ebpftrace.model import Calls, Finding, Frame, Reached, Stack, TargetInfo
from ebpftrace.text import error_name, without_surrogates
from ebpftrace.units import NS
from ebpftrace.wrappers import started

_SECOND_LETTERS = len("2026-01-31T12:00:00")


def iso_time(wall_ns: int) -> str:
    """ISO 8601 in local time with offset, to the microsecond, from ns since the epoch."""
    seconds, nanoseconds = divmod(wall_ns, NS)
    second, offset = _second(seconds)
    return f"{second}.{nanoseconds // 1000:06}{offset}"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> tuple[str, str]:
    """ISO 8601 up to the second, and the offset from UTC; in a report there are many times of one second."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return text[:_SECOND_LETTERS], f"{text[_SECOND_LETTERS:-2]}:{text[-2:]}"


def target_object(target: TargetInfo) -> dict[str, Any]:
    """Return the process as JSON."""
    return {
        "pid": target.pid,
        "inner_pid": target.inner_pid,
        "comm": without_surrogates(target.comm),
        "exe": without_surrogates(target.exe),
    }


def calls_object(calls: Calls) -> dict[str, Any]:
    """Return the numbers of calls as JSON."""
    return {
        "mmap": calls.mmap,
        "munmap": calls.munmap,
        "mremap": calls.mremap,
        "brk": calls.brk,
        "clone": calls.clone,
        "fork": calls.fork,
        "thread_exit": calls.thread_exit,
        "failed": [
            {"call": one.call, "error": error_name(one.error), "count": one.times} for one in calls.failed
        ],
    }


def stack_object(stack: Stack) -> dict[str, Any]:
    """A stack as every schema of ours has it."""
    return {
        "frames": [frame_object(frame) for frame in stack.frames],
        "complete": stack.complete,
        "source": stack.source.value,
        "note": without_surrogates(stack.note),
    }


def frame_object(frame: Frame) -> dict[str, Any]:
    """One frame of a stack, or a function named alone."""
    return {
        "function": fit(frame.function),
        "file": fit(frame.file),
        "line": frame.line,
        "module": fit(frame.module),
        "offset": frame.offset,
        "inlined": frame.inlined,
    }


def fit(text: Optional[str]) -> Optional[str]:
    """A text of the target's, fit for JSON."""
    return None if text is None else without_surrogates(text)


def reach_object(reach: Reached) -> dict[str, Any]:
    """Return the search's result for the orphans of one finding as JSON."""
    return {
        "checked": reach.checked,
        "lost": reach.lost,
        "kept": reach.kept,
        "complete": reach.complete,
        "holders": [
            {
                "where": holder.where.value,
                "symbol": without_surrogates(holder.symbol) or None,
                "thread": holder.thread,
                "thread_name": without_surrogates(holder.thread_name) or None,
                "address": None if holder.address is None else f"{holder.address:#x}",
                "frame": frame_object(holder.frame) if holder.frame is not None else None,
            }
            for holder in reach.holders
        ],
    }


def finding_object(finding: Finding) -> dict[str, Any]:
    """A finding, all members but its mappings."""
    return {
        "verdict": finding.verdict.value,
        "leak": finding.leak,
        "evidence": [without_surrogates(line) for line in finding.evidence],
        "advice": without_surrogates(finding.advice),
        "before_attach": finding.before_attach,
        "count": finding.count,
        "bytes": finding.size,
        "rss_bytes": finding.rss,
        "swap_bytes": finding.swap,
        "bytes_per_minute": finding.bytes_per_minute,
        "period_seconds": finding.period,
        "batch": finding.batch,
        "certainty": finding.certainty.value,
        "undecided": finding.undecided,
        "reach": reach_object(finding.reach) if finding.reach is not None else None,
        "start_routine": frame_object(finding.start_routine) if finding.start_routine else None,
        "calls": fit(started(finding.stack.frames)) if finding.verdict.of_stacks else None,
        "stack": stack_object(finding.stack),
    }
