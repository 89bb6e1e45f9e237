# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.strace/1``: a line for each call, stack, exit and gap of ``trace --json``.

``schema/trace-1.json`` describes them for machines.  ``at`` is in seconds since the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Optional, Union

from ebpftrace.model import Clock
from ebpftrace.report.json_parts import stack_object
from ebpftrace.strace.arguments import arguments, executed, exit_status
from ebpftrace.strace.events import Ended, Event, Executed, Executes, Leaves, Returned, Stacked
from ebpftrace.strace.values import has_failed
from ebpftrace.text import error_name, without_surrogates

SCHEMA = "ebpftrace.strace/1"
_SIGNAL_MASK = 0x7F
"""wait(2): an exit code that a signal made."""


class JsonTranscript:
    """Turns events into lines, each with its line feed, as ``trace.lines.Transcript`` does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost = 0
        self._executing: dict[int, Executes] = {}

    def lines(self, event: Event) -> Iterator[str]:
        """Yield what there is to write of one event."""
        if isinstance(event, Stacked):
            yield self._line("stack", event.at, tid=event.tid, stack=stack_object(event.stack))
            return
        yield from self.losses(event.lost)
        if isinstance(event, Returned):
            yield self._returned(event)
        elif isinstance(event, Executes):
            self._executing[event.tid] = event
        elif isinstance(event, Executed):
            begun = self._executing.pop(event.old_tid, None)
            if begun is not None:
                self._executing[event.tid] = begun
        elif isinstance(event, Leaves):
            yield self._call(event, event.at, exit_status(event.arguments[0]))
        else:
            yield self._ended(event)

    def losses(self, lost: int) -> Iterator[str]:
        """Yield a line about calls that were lost since the last one; ``lost`` counts from the beginning."""
        if lost > self._lost:
            yield self._line("lost", None, calls=lost - self._lost)
            self._lost = lost

    def _returned(self, call: Returned) -> str:
        if call.name == "execve":
            begun = self._executing.pop(call.tid, None)
            shown = "???" if begun is None else executed(begun)
        else:
            shown = arguments(call)
        failed = has_failed(call.returned)
        return self._call(
            call,
            call.entered_at or call.at,
            shown,
            returned=None if failed else call.returned & 0xFFFFFFFFFFFFFFFF,
            error=error_name(-call.returned) if failed else None,
            seconds=(call.at - call.entered_at) / 1e9 if call.entered_at else None,
        )

    def _call(
        self,
        call: Union[Returned, Leaves],
        at: int,
        shown: str,
        returned: Optional[int] = None,
        error: Optional[str] = None,
        seconds: Optional[float] = None,
    ) -> str:
        return self._line(
            "call",
            at,
            pid=call.tgid,
            tid=call.tid,
            call=call.name,
            arguments=without_surrogates(shown),
            returned=returned,
            error=error,
            seconds=seconds,
        )

    def _ended(self, event: Ended) -> str:
        self._executing.pop(event.tid, None)
        signal = event.code & _SIGNAL_MASK
        return self._line(
            "exit",
            event.at,
            pid=event.tgid,
            tid=event.tid,
            exit_status=None if signal else event.code >> 8 & 0xFF,
            signal=signal or None,
        )

    def _line(self, kind: str, at: Optional[int], **members: Any) -> str:
        seconds = None if at is None else self._clock.wall_ns(at) / 1e9
        document = {"schema": SCHEMA, "kind": kind, "at": seconds, **members}
        return json.dumps(document, allow_nan=False) + "\n"
