# SPDX-License-Identifier: Apache-2.0
"""Every tool on the same process, in rounds: untraced, a tool, untraced, the next tool, ..."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from benchmarks.loads import Kind, Load, LoadDied, running
from benchmarks.ratios import rotated
from benchmarks.results import Cell
from benchmarks.slices import Slice, slowdown
from benchmarks.tally import Tally
from benchmarks.tools import UNTRACED, CannotRun, attached, tool_named

Say = Callable[[str], None]

_ATTEMPTS = 3
"""To measure the untraced process; the machine may have held it up."""


@dataclass(frozen=True)
class Column:
    """What one kind of load brings."""

    cells: dict[str, Cell]
    pace: Optional[float]
    """Seconds that an operation of the untraced process takes; None where it did nothing."""


def measure(
    kind: Kind, tools: Sequence[str], rounds: int, seconds: float, patience: float, say: Say
) -> Column:
    """Measure each tool in each round.

    ``seconds`` is the length of one slice; after ``patience`` seconds no new round begins.
    """
    return _Course(kind, tools, rounds, seconds, patience, say).run()


class _Course:
    """The rounds of one kind of load, gone through once; the load is started anew where a tool ended it."""

    def __init__(
        self, kind: Kind, tools: Sequence[str], rounds: int, seconds: float, patience: float, say: Say
    ) -> None:
        self._kind = kind
        self._seconds = seconds
        self._deadline = time.monotonic() + patience
        self._say = say
        self._tallies = {tool: Tally() for tool in tools}
        self._ahead = [(turn, tool) for turn in range(rounds) for tool in rotated(tools, turn)]
        self._current: Optional[str] = None
        self._untraced: list[float] = []

    def run(self) -> Column:
        with tempfile.TemporaryDirectory(prefix="ebpftrace-bench-") as name:
            while self._ahead:
                self._go_on_with_a_load(Path(name))
        pace = statistics.median(self._untraced) if self._untraced else None
        return Column({tool: tally.cell() for tool, tally in self._tallies.items()}, pace)

    def _go_on_with_a_load(self, directory: Path) -> None:
        try:
            with running(self._kind, directory) as load:
                self._go_on(load, directory)
        except (CannotRun, LoadDied, OSError) as error:
            self._blame(str(error))

    def _blame(self, why: str) -> None:
        """It was the tool that was attached; where there was none, nothing can be measured any more."""
        if self._current is not None:
            self._fail(self._current, why)
            self._current = None
            return
        self._ahead.clear()
        for tool, tally in self._tallies.items():
            if tally.is_empty and not tally.failure:
                self._fail(tool, why)

    def _go_on(self, load: Load, directory: Path) -> None:
        load.work(self._seconds)  # warm up
        before = self._untraced_slice(load)
        while self._ahead:
            turn, tool = self._ahead.pop(0)
            tally = self._tallies[tool]
            # Without a tool it is the machine's noise that is measured: each round counts.
            if tally.is_settled and tool != UNTRACED:
                continue
            if turn and time.monotonic() > self._deadline:
                self._say(f"{self._kind.name}: no time for more rounds")
                self._ahead.clear()
                return
            self._current = tool
            try:
                traced = self._traced(load, tool, directory)
            except CannotRun as error:
                self._blame(str(error))
                continue
            after = self._untraced_slice(load)
            self._current = None
            found = slowdown(before, traced, after)
            tally.add_round(found)
            reported = "" if found.is_similar else ", noisy"
            self._say(f"{self._kind.name}, round {turn + 1}: {tool}: {found.ratio:.3f}{reported}")
            before = after

    def _fail(self, tool: str, why: str) -> None:
        self._tallies[tool].failure = why
        self._say(f"{self._kind.name}: {tool}: {why}")

    def _traced(self, load: Load, tool: str, directory: Path) -> Slice:
        with attached(tool_named(tool), load.pid, directory) as tracer:
            work = load.work(self._seconds)
        load.recover()
        if tracer is not None:
            self._tallies[tool].add_seen(tracer.seen(), self._kind.traced_calls * work.done)
        return work

    def _untraced_slice(self, load: Load) -> Slice:
        for _ in range(_ATTEMPTS):
            work = load.work(self._seconds)
            if work.done:
                self._untraced.append(work.pace)
                return work
            load.recover()
        raise LoadDied("the process, untraced, gets nothing done")
