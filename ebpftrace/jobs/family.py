# SPDX-License-Identifier: Apache-2.0
"""The processes that come from the traced ones: each that creates threads gets a verdict of its own."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, Optional, Union

from ebpftrace.jobs.watch import Watch, vma_of
from ebpftrace.kernel.layout import NO_SPACE
from ebpftrace.kernel.tracer import (
    Executed,
    ImageExecuted,
    ImageMapped,
    KernelEvent,
    RawCopy,
    Settled,
    Tracer,
)
from ebpftrace.model import EndedBy, Processes, Vma
from ebpftrace.process.target import Gone, Target, hold

if TYPE_CHECKING:
    from ebpftrace.jobs.leak_watch import LeakWatch

_MOST_IMAGES = 4096
"""Processes of which it is kept what they execute: those that have no thread yet, the latest."""
_MOST_EXECUTED = 4
"""Programs of one process, one after the other."""
_MOST_FILES = 1024
"""Mapped files of one process."""
_SETTLE_SECONDS = 0.5
"""Between two times at which the processes that have ended are judged ..."""
_SETTLE_SHARE = 10
"""... which takes at most one in so many seconds ..."""
_JUDGED_AT_ONCE = 32
"""Processes that are judged by one reading of the tables; then their numbers are others'."""
_MOST_ENDED = 100
"""... unless so many wait: the kernel side has room for so many only (layout.MAX_SPACES)."""
_LAST_PASSES = 3
"""At the end: while processes are judged, others may create their first thread."""
_LOOK_SECONDS = 1.0
"""Between two looks whether processes have ended of whose end nothing was told."""


@dataclass
class Image:
    """What a process executes, as the kernel told it."""

    executed: Optional[ImageExecuted] = None
    mapped: list[tuple[Vma, int]] = field(default_factory=list)
    """Files, and when they were mapped."""


class Family:
    """Follows processes: takes in what the kernel side tells of them, and has them judged when they end."""

    def __init__(
        self,
        make_watch: Callable[[Union[Target, Gone]], LeakWatch],
        report: Callable[[LeakWatch, EndedBy], None],
    ) -> None:
        """``make_watch`` makes the watch of a process that was found; ``report`` makes its report."""
        self._make_watch = make_watch
        self._report = report
        self._watches: dict[int, LeakWatch] = {}
        """By their address spaces."""
        self._images: OrderedDict[int, list[Image]] = OrderedDict()
        """By process, the latest last."""
        self._settle_at = 0.0
        self._look_at = 0.0
        self._judged = 0

    def image_of(self, pid: int, at: Optional[int] = None) -> Image:
        """What a process executes, or executed at a time; empty where that is not known."""
        images = self._images.get(pid)
        if images is None:
            images = self._images[pid] = [Image()]
            if len(self._images) > _MOST_IMAGES:
                self._images.popitem(last=False)
        for image in reversed(images):
            if at is None or image.executed is None or image.executed.at <= at:
                return image
        return images[0]

    def met(self, watch: LeakWatch) -> None:
        """Take in what a running process executes: its children that execute nothing else do so too."""
        self.image_of(watch.pid).mapped += [(vma, watch.began_at) for vma in watch.code]

    def take(self, space: int, event: KernelEvent, main: Optional[Watch], tracer: Tracer) -> None:
        """Take in an event; ``main`` is the watch of a process that was named by the user."""
        if isinstance(event, ImageExecuted):
            self.image_of(event.tid)
            images = self._images[event.tid]
            images.append(Image(event))
            del images[:-_MOST_EXECUTED]
        elif isinstance(event, ImageMapped):
            watch = main or self._watches.get(space)
            image = self.image_of(watch.pid if watch is not None else event.tid)
            if len(image.mapped) < _MOST_FILES:
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

    def keep_copy(self, space: int, copy: RawCopy) -> None:
        """Take in the stack of a call."""
        watch = self._watches.get(space)
        if watch is not None:
            watch.keep_copy(copy)

    def living(self) -> list[LeakWatch]:
        """Those that have not ended."""
        return [watch for watch in self._watches.values() if watch.ended_by is None]

    def tend(self, tracer: Tracer, crowded: bool) -> bool:
        """As ``Watch.tend``, of all of them; and judge those that have ended, now and then."""
        now = time.monotonic()
        is_due = now >= self._look_at
        if is_due:
            self._look_at = now + _LOOK_SECONDS
        has_more = False
        for watch in self.living():
            has_more |= watch.tend(tracer, crowded, is_due)
        ended = [watch for watch in self._watches.values() if watch.ended_by is not None]
        if ended and (now >= self._settle_at or len(ended) >= _MOST_ENDED):
            self._judge(ended, None, tracer)
            took = time.monotonic() - now
            self._settle_at = time.monotonic() + max(_SETTLE_SECONDS, took * _SETTLE_SHARE)
        return has_more

    def finish(self, ended_by: EndedBy, tracer: Tracer) -> None:
        """Judge all that are left: the trace ends."""
        tracer.poll()  # of processes that came and went since the last time
        for _ in range(_LAST_PASSES):
            self._judge(list(self._watches.values()), ended_by, tracer)

    def processes(self, tracer: Tracer) -> Processes:
        """How many there were; those that are not judged yet count as lost: ask after ``finish``."""
        followed, lost = tracer.processes()
        return Processes(followed, self._judged, lost + len(self._watches))

    def _settled(self, space: int, event: Settled, tracer: Tracer) -> None:
        watch = self._make_watch(hold(event.tgid, event.at) or Gone(event.tgid))
        watch.settle(space, event, self.image_of(event.image, event.at), tracer)
        self._watches[space] = watch

    def _judge(self, watches: Sequence[LeakWatch], ended_by: Optional[EndedBy], tracer: Tracer) -> None:
        for first in range(0, len(watches), _JUDGED_AT_ONCE):
            self._judge_some(watches[first : first + _JUDGED_AT_ONCE], ended_by, tracer)

    def _judge_some(self, watches: Sequence[LeakWatch], ended_by: Optional[EndedBy], tracer: Tracer) -> None:
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
