# SPDX-License-Identifier: Apache-2.0
"""The descendants of the traced processes: each one with a number gets its own watch."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable, Generic, Optional, TypeVar, Union

from ebpftrace.capture.kernel_events import (
    Executed,
    ImageExecuted,
    ImageMapped,
    KernelEvent,
    Settled,
)
from ebpftrace.capture.layout import NO_SPACE, CallKind
from ebpftrace.capture.tracer import Tracer
from ebpftrace.model import EndedBy, Processes, Vma
from ebpftrace.procfs.target import ExitedTarget, Target, hold
from ebpftrace.sessions.watch import Watch, vma_of
from ebpftrace.unwind.copies import StackCopy

AnyWatch = TypeVar("AnyWatch", bound=Watch)

_MAX_IMAGES = 4096
"""Processes, the latest, whose executed files are stored until they create a thread."""
_MAX_EXECUTED = 4
"""Programs of one process that are stored, the latest."""
_MAX_FILES = 1024
"""Mapped files of one process that are stored."""
_SETTLE_SECONDS = 0.5
"""Least time between two rounds in which ended processes are judged."""
_SETTLE_SHARE = 10
"""These rounds take at most 1/10 of the time."""
_MAX_ENDED = 100
"""If so many ended processes wait, they are judged at once: numbers are limited (layout.MAX_SPACES)."""
_JUDGED_AT_ONCE = 32
"""Processes that are judged with one reading of the tables; then their numbers are reused."""
_LAST_PASSES = 3
"""Rounds at the end: while processes are judged, others may create their first thread."""
_CHECK_SECONDS = 1.0
"""Time between two checks for ended processes whose end was not seen."""


@dataclass
class Image:
    """The files that a process executes, according to the events."""

    executed: Optional[ImageExecuted] = None
    mapped: list[tuple[Vma, int]] = field(default_factory=list)
    """Files, each with the time when it was mapped."""


class Family(Generic[AnyWatch]):
    """Handles the events of followed processes, and has the processes judged when they end."""

    def __init__(
        self,
        make_watch: Callable[[Union[Target, ExitedTarget]], AnyWatch],
        report: Callable[[AnyWatch, EndedBy], None],
    ) -> None:
        """``make_watch`` makes the watch of a process; ``report`` makes its report."""
        self._make_watch = make_watch
        self._report = report
        self._watches: dict[int, AnyWatch] = {}
        """By address space."""
        self._images: OrderedDict[int, list[Image]] = OrderedDict()
        """By process, the latest last."""
        self._settle_at = 0.0
        self._check_at = 0.0
        self._judged = 0

    def image_of(self, pid: int, at: Optional[int] = None) -> Image:
        """Return what a process executes, or executed at a time; empty if that is not known."""
        images = self._images.get(pid)
        if images is None:
            images = self._images[pid] = [Image()]
            if len(self._images) > _MAX_IMAGES:
                self._images.popitem(last=False)
        for image in reversed(images):
            if at is None or image.executed is None or image.executed.at <= at:
                return image
        return images[0]

    def add_traced(self, watch: AnyWatch) -> None:
        """Store what a running process executes, since its children inherit that."""
        self.image_of(watch.pid).mapped += [(vma, watch.began_at) for vma in watch.code]

    def take(self, space: int, event: KernelEvent, main: Optional[Watch], tracer: Tracer) -> None:
        """Handle an event; ``main`` is the watch of a process that the user named."""
        if isinstance(event, ImageExecuted):
            self.image_of(event.tid)
            images = self._images[event.tid]
            images.append(Image(event))
            del images[:-_MAX_EXECUTED]
        elif isinstance(event, ImageMapped):
            watch = main or self._watches.get(space)
            image = self.image_of(watch.pid if watch is not None else event.tid)
            if len(image.mapped) < _MAX_FILES:
                image.mapped.append((vma_of(event), event.at))
        elif isinstance(event, Settled):
            self._settled(space, event, tracer)
            return
        watch = main or self._watches.get(space)
        if watch is None or space == NO_SPACE:
            return
        if isinstance(event, Executed) and event.tid == watch.pid and watch.begun:
            executed = self.image_of(event.tid).executed
            watch.executed_path = executed.file.path if executed is not None else "another program"
        if main is None:
            watch.handle(event, tracer)

    def keep_copy(self, space: int, call: CallKind, copy: StackCopy) -> None:
        """Store the stack of a call."""
        watch = self._watches.get(space)
        if watch is not None:
            watch.keep_copy(call, copy)

    def living(self) -> list[AnyWatch]:
        """Return the watches of processes that have not ended."""
        return [watch for watch in self._watches.values() if watch.ended_by is None]

    def housekeep(self, tracer: Tracer, crowded: bool) -> bool:
        """Like ``Watch.housekeep``, for all watches; and judge those that have ended, from time to time."""
        now = time.monotonic()
        is_due = now >= self._check_at
        if is_due:
            self._check_at = now + _CHECK_SECONDS
        has_more = False
        for watch in self.living():
            has_more |= watch.housekeep(tracer, crowded, is_due)
        ended = [watch for watch in self._watches.values() if watch.ended_by is not None]
        if ended and (now >= self._settle_at or len(ended) >= _MAX_ENDED):
            self._judge(ended, None, tracer)
            took = time.monotonic() - now
            self._settle_at = time.monotonic() + max(_SETTLE_SECONDS, took * _SETTLE_SHARE)
        return has_more

    def finish(self, ended_by: EndedBy, tracer: Tracer) -> None:
        """Judge all processes that are left: the trace ends."""
        tracer.poll()  # processes may have begun and ended since the last poll
        for _ in range(_LAST_PASSES):
            self._judge(list(self._watches.values()), ended_by, tracer)

    def processes(self, tracer: Tracer) -> Processes:
        """Return the numbers of processes; call it after ``finish``, as unjudged ones count as lost."""
        followed, lost = tracer.processes()
        return Processes(followed, self._judged, lost + len(self._watches))

    def _settled(self, space: int, event: Settled, tracer: Tracer) -> None:
        watch = self._make_watch(hold(event.tgid, event.at) or ExitedTarget(event.tgid))
        watch.settle(space, event, self.image_of(event.image, event.at), tracer)
        self._watches[space] = watch

    def _judge(self, watches: Sequence[AnyWatch], ended_by: Optional[EndedBy], tracer: Tracer) -> None:
        for first in range(0, len(watches), _JUDGED_AT_ONCE):
            self._judge_some(watches[first : first + _JUDGED_AT_ONCE], ended_by, tracer)

    def _judge_some(self, watches: Sequence[AnyWatch], ended_by: Optional[EndedBy], tracer: Tracer) -> None:
        tracer.poll()
        with tracer.same_reading():
            for watch in watches:
                why = watch.ended_by or ended_by
                if why is None:
                    continue
                self._report(watch, why)
                self._judged += 1
        ended = {watch.space for watch in watches if watch.ended_by is not None}
        for watch in watches:
            del self._watches[watch.space]
            watch.__exit__()
        tracer.give_back(ended)
