# SPDX-License-Identifier: Apache-2.0
"""The trace of calls, told once: hold the targets, attach, print what comes, detach."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional, Protocol

from ebpftrace.errors import CannotTrace
from ebpftrace.jobs.command import hold_targets
from ebpftrace.jobs.interrupts import Interrupts
from ebpftrace.kernel.calls.layout import Filters
from ebpftrace.kernel.calls.records import CopiedStack, Recorded
from ebpftrace.kernel.calls.tracer import CallTracer, Lost
from ebpftrace.kernel.registration import register
from ebpftrace.model import NO_STACK, CommandEnd, Stack
from ebpftrace.process.clock import read_clock
from ebpftrace.process.target import Target
from ebpftrace.process.tasks import listed_tasks
from ebpftrace.stacks.engine import Engine
from ebpftrace.stacks.resolve import StackResolver
from ebpftrace.stacks.shortfalls import Shortfalls
from ebpftrace.trace.events import Ended, Event, Executed, Stacked
from ebpftrace.trace.lines import Style, Transcript
from ebpftrace.trace.order import WINDOW, Ordered
from ebpftrace.trace.summary import Total, table

_POLL_SECONDS = 0.1
"""How long a call may wait to be printed; the kernel side does not wake us for each."""

_BUSY_SHARE = 0.05
"""Share of the ring buffer that was filled between two looks, from which on there is no pause."""

_READER_GONE = select.POLLERR | select.POLLHUP
"""What a pipe says of it, and what a socket and a terminal say (poll(2), unix(7))."""

_LINES_AT_ONCE = 2000
"""Written together: few system calls, and little to hold."""


@dataclass(frozen=True)
class Settings:
    """What to trace, for how long, and how to print it."""

    filters: Filters
    style: Style
    pids: Sequence[int] = ()
    command: Sequence[str] = ()
    """Program and arguments to start and trace instead of running processes."""
    duration: Optional[float] = None
    """Seconds; None: until interrupted, or until all targets have exited."""
    debuginfod: bool = False
    """Ask its servers for debug information that is not on this host."""


class Output(Protocol):
    """Where lines go."""

    def write(self, text: str) -> None:
        """Write whole lines now.  Raises OSError (EPIPE) or CannotTrace."""

    def fileno(self) -> int:
        """For poll(2): tells of a reader that has gone."""


class Outcome(NamedTuple):
    """What the trace lacks."""

    lost: Lost
    notes: Sequence[str]
    """Of its stacks; a line each."""


def run(
    settings: Settings,
    output: Output,
    attached: Callable[[], None],
    command_ended: Callable[[CommandEnd], None],
) -> Outcome:
    """Trace and print; return what is missing.  Ended by the duration, a signal, or the targets' end.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    with ExitStack() as held:
        command, targets = hold_targets(held, settings.pids, settings.command, command_ended)
        stacks = held.enter_context(_Stacks(settings.debuginfod)) if settings.filters.stacks else None
        interrupts = held.enter_context(Interrupts())
        tracer = held.enter_context(CallTracer(settings.filters))
        printer = _Printer(tracer, Transcript(settings.style, read_clock()), output, stacks)
        for target in targets:
            if command:
                tracer.add_command(target.pid)
            else:
                _register(tracer, target)
            if stacks is not None:
                stacks.open(target.pid)
        attached()
        if command:
            command.go()
        _follow(settings.duration, targets, interrupts, printer, tracer, output)
        printer.finish()
        if settings.filters.counted:
            output.write(table(_chosen(tracer.totals(), settings.filters)))
        lost = tracer.lost()
        lost = lost._replace(calls=lost.calls + tracer.skipped())
        return Outcome(lost, [] if stacks is None else stacks.notes())


def _register(tracer: CallTracer, target: Target) -> None:
    pid = target.pid
    registered = register(
        lambda: listed_tasks(pid), tracer.known_threads, tracer.add_threads, tracer.forget_thread, {}
    )
    if not registered.complete:
        raise CannotTrace(f"process {pid} creates threads faster than they can be listed", "try again")


def _chosen(totals: Iterable[Total], filters: Filters) -> list[Total]:
    return [total for total in totals if total.name in filters.calls]


def _follow(
    duration: Optional[float],
    targets: Sequence[Target],
    interrupts: Interrupts,
    printer: _Printer,
    tracer: CallTracer,
    output: Output,
) -> None:
    """Print until the trace ends."""
    ends = None if duration is None else time.monotonic() + duration
    waiting = select.poll()
    waiting.register(interrupts.fileno(), select.POLLIN)
    waiting.register(output.fileno(), 0)  # what tells of a reader that has gone comes unasked
    living = {target.fileno() for target in targets}
    for pidfd in living:
        waiting.register(pidfd, select.POLLIN)
    pause = _POLL_SECONDS
    while True:
        left = pause if ends is None else min(pause, max(0.0, ends - time.monotonic()))
        for descriptor, events in waiting.poll(left * 1000):
            if descriptor in living:
                living.discard(descriptor)
                waiting.unregister(descriptor)
            elif descriptor == output.fileno() and events & _READER_GONE:
                raise BrokenPipeError(32, "the reader has gone")
        pause = 0.0 if printer.print() > _BUSY_SHARE else _POLL_SECONDS
        if interrupts.received or (ends is not None and time.monotonic() >= ends):
            return
        if not living and not tracer.has_threads():
            return


class _Printer:
    """Prints what the kernel side tells, in the order of time."""

    def __init__(
        self, tracer: CallTracer, transcript: Transcript, output: Output, stacks: Optional[_Stacks]
    ) -> None:
        self._tracer = tracer
        self._transcript = transcript
        self._output = output
        self._stacks = stacks
        self._ordered: Ordered[Recorded] = Ordered()

    def print(self) -> float:
        """Print what is old enough to be in order; return which share of the buffer was filled."""
        now = time.monotonic_ns()
        recorded, share = self._tracer.poll()
        self._ordered.add(recorded)
        self._write(self._ordered.take(now - WINDOW))
        return share

    def finish(self) -> None:
        """Print the rest."""
        recorded, _ = self._tracer.poll()
        self._ordered.add(recorded)
        self._write(self._ordered.take(time.monotonic_ns()))
        self._output.write("".join(self._transcript.losses(self._tracer.lost().calls)))

    def _write(self, recorded: Sequence[Recorded]) -> None:
        for first in range(0, len(recorded), _LINES_AT_ONCE):
            piece = recorded[first : first + _LINES_AT_ONCE]
            lines = [line for event in self._named(piece) for line in self._transcript.lines(event)]
            if lines:
                self._output.write("".join(lines))

    def _named(self, recorded: Iterable[Recorded]) -> Iterator[Event]:
        for event in recorded:
            if isinstance(event, CopiedStack):
                yield Stacked(event.at, event.tid, self._stacks.resolve(event) if self._stacks else NO_STACK)
            else:
                if self._stacks is not None:
                    self._stacks.tell(event)
                yield event


class _Stacks:
    """Names the stacks of all traced processes; a context manager."""

    def __init__(self, debuginfod: bool) -> None:
        self._engine = Engine(debuginfod=debuginfod)
        self._shortfalls = Shortfalls()
        self._resolvers: dict[int, StackResolver] = {}

    def __enter__(self) -> _Stacks:
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        for resolver in self._resolvers.values():
            resolver.close()
        self._engine.close()

    def open(self, pid: int) -> StackResolver:
        """Look at a process while it lives."""
        if pid not in self._resolvers:
            self._resolvers[pid] = StackResolver(pid, self._engine, self._shortfalls)
        return self._resolvers[pid]

    def tell(self, event: Event) -> None:
        """Take in that a process runs another program from now on, or is gone."""
        if isinstance(event, Executed):
            self.open(event.tgid).refresh(event.at)
        elif isinstance(event, Ended) and event.tid == event.tgid:
            resolver = self._resolvers.get(event.tgid)
            if resolver is not None and not resolver.alive:
                del self._resolvers[event.tgid]
                resolver.close()

    def notes(self) -> list[str]:
        """What the stacks lacked so far."""
        return self._shortfalls.notes()

    def resolve(self, copied: CopiedStack) -> Stack:
        """The stack with names."""
        if copied.tgid != copied.image and not self.open(copied.tgid).alive:
            # It was forked and has gone already: it had the code of the one it was forked from.
            return self.open(copied.image).resolve(copied.copy)
        return self.open(copied.tgid).resolve(copied.copy)
