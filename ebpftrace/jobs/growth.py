"""``growth``, told once: attach, say at each interval how the process grew and by whom, sum up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Optional, Protocol

from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.jobs.tracing import Cost, begin_loading, collector_off, follow, open_tracer
from ebpftrace.process.target import open_target

if TYPE_CHECKING:
    from ebpftrace.growth.model import Size, Step, Summary
    from ebpftrace.jobs.watch import Watch
    from ebpftrace.model import Clock, TargetInfo

_SHARE = 0.05
"""Looking for causes may use at most this share of a core, however many mappings there are."""


@dataclass(frozen=True)
class Settings:
    """What to watch, for how long, how often."""

    pid: int
    interval: float
    """Seconds."""
    duration: Optional[float]
    """Seconds; None: until interrupted, or until the target's end."""
    debuginfod: bool = False
    """Ask its servers for debug information that is not on this host."""


class Observer(Protocol):
    """Who is told how the process grows."""

    def attached(self, target: TargetInfo, clock: Clock, size: Size) -> None:
        """All probes are live; the size is the first one."""

    def step(self, step: Step) -> None:
        """One interval is over."""

    def summary(self, summary: Summary) -> None:
        """The window is over."""


def run(settings: Settings, observer: Observer) -> None:
    """Watch until the duration, a signal, or the end of the target.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    with ExitStack() as held:
        target = held.enter_context(open_target(settings.pid))
        interrupts = held.enter_context(Interrupts())
        loading = held.enter_context(begin_loading([settings.pid]))
        # Not at the top: see ``jobs.mmap_leaks.run``.
        from ebpftrace.jobs.growth_watch import GrowthWatch, Record
        from ebpftrace.stacks.engine import Engine

        engine = held.enter_context(Engine(debuginfod=settings.debuginfod))
        watch = GrowthWatch(target, engine)
        held.enter_context(watch)
        watch.meet()
        watch.meet_threads()
        tracer = held.enter_context(open_tracer([watch], loading))
        with collector_off():
            watch.attach(tracer)
            cost = Cost(engine)
            record = Record(watch, watch.moment(tracer))
        observer.attached(watch.info, watch.clock, record.size)

        def due(_: Sequence[Watch]) -> None:
            if time.monotonic() < record.look_again_at:
                observer.step(record.glance(watch.size()))
                return
            before = cost.now().cpu_seconds
            look()
            # CPU time: a hiccup of the machine would hide the causes for twenty times as long.
            record.look_again_at = time.monotonic() + (cost.now().cpu_seconds - before) / _SHARE

        def look() -> None:
            with collector_off():
                observer.step(record.look(watch.moment(tracer)))

        ended_by = follow(
            settings.duration, settings.interval, [watch], tracer, interrupts, lambda _: None, due
        )
        look()
        observer.summary(replace(record.summary(watch.ended_by or ended_by), cost=cost.now()))
