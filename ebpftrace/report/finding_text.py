# SPDX-License-Identifier: Apache-2.0
"""One finding as the terminal shows it: labelled rows of plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Optional

from ebpftrace import callflags, frames
from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import Finding, Orphan, Report, StackSource, Thread
from ebpftrace.report.headline import every
from ebpftrace.text import (
    address,
    count,
    duration,
    escape,
    exact_size,
    inside,
    plural,
    rate,
    shorten,
    size,
    wall,
)
from ebpftrace.units import NS
from ebpftrace.wrappers import started

Row = tuple[str, str]
"""A label and a line of text; an empty label continues the row above."""

_OWNERS_SHOWN = 3
_FILE_WIDTH = 60
_SHAPES_SHOWN = 3
_ADDRESSES_SHOWN = 3
_FIRST_FRAMES, _LAST_FRAMES = 24, 8
_NAME_WIDTH = 32

_SOURCES = {
    StackSource.FRAME_POINTER: "found by frame pointers: unreliable on x86-64, where most programs keep none",
    StackSource.SIGNATURE: "taken from another call with the same signature",
}


def rows(finding: Finding, report: Report, width: int) -> Iterator[Row]:
    """The rows of a finding; stack frames and addresses fit in ``width``, prose may be longer."""
    pace = _pace(finding)
    if pace:
        yield "growth", pace
    yield from _labelled("owners" if finding.count > 1 else "owner", _owners(finding, report))
    yield from _labelled("mapping", _shapes(finding))
    yield from _labelled("addresses" if finding.count > 1 else "address", _addresses(finding))
    if finding.start_routine is not None:
        yield from _labelled("started at", iter(frames.lines(finding.start_routine, width)))
    calls = started(finding.stack.frames) if finding.verdict.of_stacks else None
    if calls is not None:
        yield "calls", shorten(escape(calls), width)
    yield from _labelled("calls", _called(finding, width))
    yield from _labelled(_stack_label(finding), _stack(finding, width))
    # Evidence and advice may quote a name from the target.
    if finding.fails:
        yield "fingerprint", fingerprint(finding)
    yield from _labelled("why", map(escape, finding.evidence))
    if finding.advice:
        yield "advice", escape(finding.advice)


def _labelled(label: str, lines: Iterator[str]) -> Iterator[Row]:
    for index, line in enumerate(lines):
        yield ("" if index else label), line


def _called(finding: Finding, width: int) -> Iterator[str]:
    """Return the start routine of the threads with its argument, as far as they were read."""
    for function, number in finding.called:
        seen = "" if number == finding.count else f" (read at {plural(number, 'creation')})"
        yield shorten(escape(function), width - len(seen)) + seen


def _pace(finding: Finding) -> str:
    parts = []
    if finding.bytes_per_minute:
        parts.append(rate(finding.bytes_per_minute))
    if finding.period is not None:
        parts.append(every(finding))
    return ", ".join(parts)


def _owners(finding: Finding, report: Report) -> Iterator[str]:
    owners = {
        orphan.outstanding.owner.id: orphan.outstanding.owner
        for orphan in finding.orphans
        if orphan.outstanding.owner is not None
    }
    latest_first = sorted(owners.values(), key=lambda owner: owner.exited_at or 0, reverse=True)
    for owner in latest_first[:_OWNERS_SHOWN]:
        yield _owner(owner, report)
    rest = len(latest_first) - _OWNERS_SHOWN
    if rest > 0:
        yield f"and {count(rest)} more"
    unknown = sum(orphan.outstanding.owner is None for orphan in finding.orphans)
    if unknown:
        yield f"{plural(unknown, 'thread')} that exited before attach: their tids and names are unknown"
    yield from _unlisted(finding)


def _unlisted(finding: Finding) -> Iterator[str]:
    left_out = finding.unlisted.all.number
    if left_out:
        yield f"not known of {plural(left_out, 'mapping')} that the saved report leaves out (--top)"


def _owner(owner: Thread, report: Report) -> str:
    parts = [f"{inside(owner.id.tid, owner.inner_tid)} {shorten(escape(owner.name), _NAME_WIDTH)}"]
    if owner.exited_at is not None:
        parts.append(f"lived {duration((owner.exited_at - owner.id.started_at) / NS)}")
        parts.append(f"exited {wall(report.clock.wall_ns(owner.exited_at), _now(report))}")
    else:
        parts.append("exited before attach")
    if owner.creator is not None:
        name = shorten(escape(owner.creator_name or ""), _NAME_WIDTH)
        creator = inside(owner.creator.tid, owner.creator_inner_tid)
        parts.append(f"created by {creator} {name}".rstrip())
    return ", ".join(parts)


def _now(report: Report) -> int:
    return report.clock.wall_ns(report.ended_at)


def _shapes(finding: Finding) -> Iterator[str]:
    shapes = Counter(map(_Shape.of, finding.orphans))
    for shape, number in shapes.most_common(_SHAPES_SHOWN):
        yield shape.extent if len(shapes) == 1 else f"{count(number)} x {shape.extent}"
        if shape.file:
            yield f"of {shorten(escape(shape.file), _FILE_WIDTH)}{_reread(shape, number)}"
        if shape.call:
            yield shape.call
    rest = len(shapes) - _SHAPES_SHOWN
    if rest > 0:
        yield f"and {count(rest)} more sizes or kinds"
    yield from _unlisted(finding)


def _reread(shape: _Shape, number: int) -> str:
    """Return a remark if the same pages are counted more than once."""
    if number < 2 or shape.flags is None or not shape.flags & callflags.MAP_SHARED:
        return ""
    return f", the same file {count(number)} times: RSS counts its pages as often"


class _Shape(NamedTuple):
    """Properties that orphans can share: their size and the arguments of their mmap call."""

    size: int
    guard: int
    prot: Optional[int]
    flags: Optional[int]
    made: int
    file: str

    @classmethod
    def of(cls, orphan: Orphan) -> _Shape:
        mapping = orphan.outstanding.mapping
        made = mapping.made.size if mapping.made else 0
        return cls(mapping.size, orphan.guard or 0, mapping.prot, mapping.flags, made, mapping.file)

    @property
    def extent(self) -> str:
        guard = f", guard {size(self.guard)}" if self.guard else ""
        left = f", left of {size(self.made)}" if self.size < self.made else ""
        return f"{exact_size(self.size)}{left}{guard}"

    @property
    def call(self) -> str:
        """Empty before attach."""
        if self.prot is None or self.flags is None:
            return ""
        return f"{callflags.prot(self.prot)}, {callflags.map_flags(self.flags)}"


def _addresses(finding: Finding) -> Iterator[str]:
    for orphan in finding.orphans[-_ADDRESSES_SHOWN:]:
        mapping = orphan.outstanding.mapping
        text = f"{address(mapping.start)}-{address(mapping.end)}"
        if len(mapping.pieces) > 1:
            text += f" ({len(mapping.pieces)} pieces, {size(mapping.size)} of it left)"
        yield text
    rest = finding.count - min(len(finding.orphans), _ADDRESSES_SHOWN)
    if rest > 0:
        yield f"and {count(rest)} more"


def _stack_label(finding: Finding) -> str:
    return "created at" if finding.verdict.of_stacks else "mapped at"


def _stack(finding: Finding, width: int) -> Iterator[str]:
    stack = finding.stack
    if not stack.frames:
        why = "before attach: the call was not seen" if finding.before_attach else "no stack was recorded"
        yield escape(stack.note) or why
        return
    total = len(stack.frames)
    digits = len(str(total - 1))
    for index, frame in enumerate(stack.frames):
        if _FIRST_FRAMES <= index < total - _LAST_FRAMES:
            if index == _FIRST_FRAMES:
                yield f"... {plural(total - _FIRST_FRAMES - _LAST_FRAMES, 'frame')} ..."
            continue
        first, *places = frames.lines(frame, width - digits - 2)
        yield f"#{index:<{digits}} {first}"
        yield from (" " * (digits + 2) + line for line in places)
    if not stack.complete:
        yield "(incomplete: not all of its frames are known)"
    if stack.source in _SOURCES:
        yield f"({_SOURCES[stack.source]})"
    if stack.note:
        yield f"({escape(stack.note)})"
