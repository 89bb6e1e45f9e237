# SPDX-License-Identifier: Apache-2.0
"""Turns events of the traced tasks, in the order of time, into the lines that strace prints for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from ebpftrace.callflags import signal_name
from ebpftrace.frames import name as frame_name
from ebpftrace.frames import source
from ebpftrace.model import Clock, Stack
from ebpftrace.strace.arguments import arguments, executed, exit_status
from ebpftrace.strace.events import Ended, Event, Executed, Executes, Leaves, Returned, Stacked
from ebpftrace.strace.values import error, has_failed, hexadecimal
from ebpftrace.text import count, escape
from ebpftrace.units import NS

_RESULT_COLUMN = 40
"""strace(1), -a: the result begins at this column or later."""
_HEX_RESULTS = ("mmap", "mremap", "brk")

_SIGNAL_MASK, _CORE_DUMPED = 0x7F, 0x80
"""Bits of an exit code that a signal caused (wait(2))."""


@dataclass(frozen=True)
class Style:
    """The parts of a line that are shown."""

    times: int = 0
    """The number of ``-t`` options of strace: 0 none, 1 seconds, 2 microseconds, 3 since the epoch.
    As in strace, it is the time at which a call began, if that was recorded."""
    relative: bool = False
    """Show the time since the line before."""
    took: bool = False
    """Show how long each call took."""
    ends: bool = True
    """Show exits of tasks; those by a signal are always shown, as strace -qq does."""


class Transcript:
    """Turns events into lines, each with its line feed."""

    def __init__(self, style: Style, clock: Clock) -> None:
        self._style = style
        self._clock = clock
        self._lost = 0
        self._before: Optional[int] = None
        self._second = -1
        self._second_text = ""
        self._executing: dict[int, Executes] = {}
        self._held: dict[int, Stack] = {}
        self._leader_ends: dict[int, str] = {}

    def lines(self, event: Event) -> Iterator[str]:
        """Yield the lines for one event."""
        if isinstance(event, Stacked):
            yield from self._stack(event)
            return
        yield from self.losses(event.lost)
        if isinstance(event, Returned):
            yield from self._returned(event)
        elif isinstance(event, Executes):
            self._executing[event.tid] = event
        elif isinstance(event, Executed):
            yield from self._executed(event)
        elif isinstance(event, Leaves):
            yield self._call(event.at, event.tid, f"{event.name}({exit_status(event.arguments[0])})", "?")
        else:
            yield from self._ended(event)

    def losses(self, lost: int) -> Iterator[str]:
        """Yield a line about calls that were lost since the last one; ``lost`` counts from the beginning."""
        if lost > self._lost:
            number = lost - self._lost
            yield f"--- {number} call{'' if number == 1 else 's'} lost ---\n"
            self._lost = lost

    def _returned(self, call: Returned) -> Iterator[str]:
        if call.name == "execve":
            # After a successful execve, the memory and registers of the call are gone.
            begun = self._executing.pop(call.tid, None)
            shown = "???" if begun is None else executed(begun)
        else:
            shown = arguments(call)
        if has_failed(call.returned):
            result = error(-call.returned)
        elif call.name in _HEX_RESULTS:
            result = hexadecimal(call.returned & 0xFFFFFFFFFFFFFFFF)
        else:
            result = str(call.returned)
        if self._style.took and call.entered_at:
            result += f" <{_seconds(call.at - call.entered_at)}>"
        # For a call that began before the trace, only the time of its return is known.
        yield self._call(call.entered_at or call.at, call.tid, f"{call.name}({shown})", result)
        if call.tid in self._held:
            yield from _frames(self._held.pop(call.tid))

    def _executed(self, event: Executed) -> Iterator[str]:
        if event.old_tid != event.tid:
            begun, stack = self._executing.pop(event.old_tid, None), self._held.pop(event.old_tid, None)
            if begun is not None:
                self._executing[event.tid] = begun
            if stack is not None:
                self._held[event.tid] = stack
            self._leader_ends.pop(event.tgid, None)
            yield f"{self._prefix(event.at, event.tid)}+++ superseded by execve in pid {event.old_tid} +++\n"

    def _ended(self, event: Ended) -> Iterator[str]:
        self._executing.pop(event.tid, None)
        self._held.pop(event.tid, None)
        if event.tgid in self._leader_ends:
            yield self._leader_ends.pop(event.tgid)
        number = event.code & _SIGNAL_MASK
        if not number and not self._style.ends:
            return
        if number:
            dumped = "(core dumped) " if event.code & _CORE_DUMPED else ""
            how = f"killed by {signal_name(number)} {dumped}"
        else:
            how = f"exited with {event.code >> 8 & 0xFF} "
        line = f"{self._prefix(event.at, event.tid)}+++ {how}+++\n"
        if event.tid == event.tgid and any(begun.tgid == event.tgid for begun in self._executing.values()):
            # Another thread executes a program: it will take over the leader's tid, so this was no exit.
            self._leader_ends[event.tgid] = line
        else:
            yield line

    def _stack(self, event: Stacked) -> Iterator[str]:
        begun = self._executing.get(event.tid)
        if begun is not None and begun.at == event.at:
            self._held[event.tid] = event.stack
        else:
            yield from _frames(event.stack)

    def _call(self, at: int, tid: int, call: str, result: str) -> str:
        return f"{self._prefix(at, tid) + call + ' ':{_RESULT_COLUMN}}= {result}\n"

    def _prefix(self, at: int, tid: int) -> str:
        prefix = f"{tid:<5} "
        if self._style.times:
            prefix += self._time(at)
        if self._style.relative:
            since = _seconds(at - (at if self._before is None else self._before))
            prefix += f"(+{since:>13}) " if self._style.times else f"{since:>13} "
            self._before = at
        return prefix

    def _time(self, at: int) -> str:
        wall = self._clock.wall_ns(at)
        second, rest = divmod(wall, NS)
        if self._style.times == 3:
            return f"{second}.{rest // 1000:06} "
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%H:%M:%S", time.localtime(second))
        if self._style.times == 1:
            return f"{self._second_text} "
        return f"{self._second_text}.{rest // 1000:06} "


def summary_of_losses(calls: int, stacks: int, threads: int) -> str:
    """A line about what could not be recorded; empty if nothing was lost."""
    parts = [
        f"{count(number)} {what}"
        for number, what in ((calls, "calls"), (stacks, "stacks"), (threads, "threads"))
        if number
    ]
    return f"lost: {', '.join(parts)}" if parts else ""


def _seconds(ns: int) -> str:
    """Seconds with microseconds; negative if a call returned before another that began earlier."""
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    return f"{sign}{ns // NS}.{ns % NS // 1000:06}"


def _frames(stack: Stack) -> Iterator[str]:
    for frame in stack.frames:
        if frame.module is None and frame.file is not None:  # Python code
            yield f" > {source(frame)}({frame_name(frame)})\n"
            continue
        at = "" if frame.offset is None else f" [0x{frame.offset:x}]"
        function = frame_name(frame) if frame.function else ""
        if frame.function_offset is not None:
            function += f"+0x{frame.function_offset:x}"
        yield f" > {escape(frame.module or '')}({function}){at}\n"
    if not stack.complete:
        yield f" > ({escape(stack.note) or 'no stack'})\n"
