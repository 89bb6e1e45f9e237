# SPDX-License-Identifier: Apache-2.0
"""Runs ``trace``: open the targets, attach, print the calls, detach."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional, Protocol, Union

from ebpftrace.capture.calls.layout import Filters
from ebpftrace.capture.calls.records import CopiedStack, Recorded
from ebpftrace.capture.calls.tracer import CallTracer, Lost
from ebpftrace.capture.registration import register
from ebpftrace.errors import CannotTrace
from ebpftrace.model import NO_STACK, CommandEnd, Stack
from ebpftrace.procfs.clock import read_clock
from ebpftrace.procfs.target import Target
from ebpftrace.procfs.tasks import listed_tasks
from ebpftrace.report.trace_json import JsonTranscript
from ebpftrace.sessions.command import hold_targets
from ebpftrace.sessions.interrupts import Interrupts
from ebpftrace.strace.events import WINDOW, Ended, Event, Executed, Ordered, Stacked
from ebpftrace.strace.format import Style, Transcript
from ebpftrace.strace.summary import Total, table
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver
from ebpftrace.unwind.stack_warnings import StackWarnings

_POLL_SECONDS = 0.1
"""How long a call may wait to be printed; the BPF programs do not wake us for each."""

_BUSY_SHARE = 0.05
"""If more than this share of the ring buffer was filled between two polls, there is no pause."""

_READER_GONE = select.POLLERR | select.POLLHUP
"""Events of a pipe, or of a socket or terminal, without a reader (poll(2), unix(7))."""

_LOADING_SECONDS = 0.1
"""After an exec, what the program is linked with has been loaded by then."""
_MAX_READINGS = 1024
_LINES_AT_ONCE = 2000
"""Lines written by one system call."""


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
    json: bool = False
    """Write JSON in place of strace's lines."""
    debuginfod: bool = False
    """Ask debuginfod servers for debug information that is not on this host."""


class Output(Protocol):
    """Receives the lines."""

    def write(self, text: str) -> None:
        """Write whole lines now.  Raises OSError (EPIPE) or CannotTrace."""

    def fileno(self) -> int:
        """For poll(2), which reports that the reader has gone."""


class Outcome(NamedTuple):
    """What the trace lacks."""

    lost: Lost
    notes: Sequence[str]
    """Lines about missing or doubtful stacks."""


def run(
    settings: Settings,
    output: Output,
    attached: Callable[[], None],
    command_ended: Callable[[CommandEnd], None],
) -> Outcome:
    """Trace and print until the duration, a signal, or the targets' end; return what is missing.

    Raises CannotTrace where nothing could be traced; nothing is left attached.
    """
    with ExitStack() as held:
        command, targets = hold_targets(held, settings.pids, settings.command, command_ended)
        stacks = held.enter_context(_Stacks(settings.debuginfod)) if settings.filters.stacks else None
        tracer = held.enter_context(CallTracer(settings.filters))
        clock = read_clock()
        transcript = JsonTranscript(clock) if settings.json else Transcript(settings.style, clock)
        printer = _Printer(tracer, transcript, output, stacks)
        for target in targets:
            if command:
                tracer.add_command(target.pid)
            else:
                _register(tracer, target)
            if stacks is not None:
                stacks.find_python(target.pid, tracer)
        # Before this, a signal ends the program: there is nothing to print, and loading takes seconds.
        interrupts = held.enter_context(Interrupts())
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
    waiting.register(output.fileno(), 0)  # POLLERR and POLLHUP are always reported
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
    """Prints the recorded calls in the order of time."""

    def __init__(
        self,
        tracer: CallTracer,
        transcript: Union[Transcript, JsonTranscript],
        output: Output,
        stacks: Optional[_Stacks],
    ) -> None:
        self._tracer = tracer
        self._transcript = transcript
        self._output = output
        self._stacks = stacks
        self._ordered: Ordered[Recorded] = Ordered()

    def print(self) -> float:
        """Print the calls that are old enough to be in order; return the filled share of the buffer."""
        now = time.monotonic_ns()
        recorded, share = self._tracer.poll()
        self._ordered.add(recorded)
        self._write(self._ordered.take(now - WINDOW))
        if self._stacks is not None:
            self._stacks.look_again(self._tracer)
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
                stack = NO_STACK if self._stacks is None else self._stacks.resolve(event, self._tracer)
                yield Stacked(event.at, event.tid, stack)
            else:
                if self._stacks is not None:
                    self._stacks.note(event, self._tracer)
                yield event


class _Stacks:
    """Names the stacks of all traced processes; a context manager."""

    def __init__(self, debuginfod: bool) -> None:
        self._engine = Engine(debuginfod=debuginfod)
        self._stack_warnings = StackWarnings()
        self._resolvers: dict[int, StackResolver] = {}
        self._versions: dict[int, int] = {}
        """Of the code of each process in which Python was searched last."""
        self._readings: deque[tuple[float, int]] = deque()
        """When (time.monotonic) to read again which code a process has mapped, ascending, and which."""

    def __enter__(self) -> _Stacks:
        self._engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        for resolver in self._resolvers.values():
            resolver.close()
        self._engine.close()

    def open(self, pid: int) -> StackResolver:
        """Open a process while it lives, and return its resolver."""
        if pid not in self._resolvers:
            self._resolvers[pid] = StackResolver(pid, self._engine, self._stack_warnings)
        return self._resolvers[pid]

    def find_python(self, pid: int, tracer: CallTracer) -> None:
        """Have frames of Python code recorded if the process has an interpreter that was not found yet."""
        resolver = self.open(pid)
        if self._versions.get(pid) != resolver.version:
            self._versions[pid] = resolver.version
            places = resolver.find_python() if resolver.alive else None
            if places is not None:
                tracer.python_found(pid, places)

    def note(self, event: Event, tracer: CallTracer) -> None:
        """Note that a process has executed another program, or has exited."""
        if isinstance(event, Executed):
            tracer.python_gone(event.tgid)
            self.open(event.tgid).refresh(event.at)
            self.find_python(event.tgid, tracer)
            if len(self._readings) < _MAX_READINGS:
                self._readings.append((time.monotonic() + _LOADING_SECONDS, event.tgid))
        elif isinstance(event, Ended) and event.tid == event.tgid:
            resolver = self._resolvers.get(event.tgid)
            if resolver is not None and not resolver.alive:
                tracer.python_gone(event.tgid)
                del self._resolvers[event.tgid]
                self._versions.pop(event.tgid, None)
                resolver.close()

    def look_again(self, tracer: CallTracer) -> None:
        """Read the code of processes that have loaded their libraries since they executed a program."""
        while self._readings and self._readings[0][0] <= time.monotonic():
            _, pid = self._readings.popleft()
            resolver = self._resolvers.get(pid)
            if resolver is not None and resolver.alive:
                resolver.refresh()
                self.find_python(pid, tracer)

    def notes(self) -> list[str]:
        """Return the notes on the stacks so far."""
        return self._stack_warnings.notes()

    def resolve(self, copied: CopiedStack, tracer: CallTracer) -> Stack:
        """Return the stack with names."""
        pid = copied.tgid
        if pid != copied.image and not self.open(pid).alive:
            # A forked process that has exited had the code of the process that forked it.
            pid = copied.image
        self.find_python(pid, tracer)
        stack = self.open(pid).resolve(copied.copy)
        self.find_python(pid, tracer)  # in a library that was loaded only now
        return stack
