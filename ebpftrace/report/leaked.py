# SPDX-License-Identifier: Apache-2.0
"""Leaked bytes by stack: what folded stacks, speedscope and the flame graph draw."""

from __future__ import annotations

from dataclasses import dataclass

from ebpftrace import frames
from ebpftrace.model import Finding, Frame, Report, Stack
from ebpftrace.text import escape


@dataclass(frozen=True)
class Box:
    """One level of a stack as a graph names it; the names are escaped."""

    name: str
    file: str = ""
    line: int = 0
    inlined: bool = False


@dataclass(frozen=True)
class WeightedStack:
    """A stack, outermost first, and the bytes that its leaks hold or that it filled."""

    boxes: tuple[Box, ...]
    weight: int


def leaked_stacks(report: Report) -> tuple[WeightedStack, ...]:
    """Return one stack for each leak that is not accepted, rooted in the target and its verdict.

    The largest first.  No leaked byte is left out: a finding without a stack ends in the start routine of its
    threads, or in ``[no stack]``.
    """
    root = Box(escape(report.target.comm) or str(report.target.pid))
    return tuple(
        WeightedStack((root, Box(f"[{finding.verdict.value}]"), *_boxes(finding)), finding.size)
        for finding in sorted(report.findings, key=lambda finding: finding.size, reverse=True)
        if finding.fails and finding.size
    )


def boxes_of(stack: Stack) -> list[Box]:
    """A stack, outermost first; a word in brackets where frames are missing."""
    cut = [] if stack.complete else [Box("[incomplete]" if stack.frames else "[no stack]")]
    return cut + [_box(frame) for frame in reversed(stack.frames)]


def _boxes(finding: Finding) -> list[Box]:
    if finding.stack.frames:
        return boxes_of(finding.stack)
    boxes = [Box("[before attach]" if finding.before_attach else "[no stack]")]
    if finding.start_routine is not None:
        boxes.append(_box(finding.start_routine))
    return boxes


def _box(frame: Frame) -> Box:
    return Box(frames.name(frame), escape(frame.file or ""), frame.line or 0, frame.inlined)
