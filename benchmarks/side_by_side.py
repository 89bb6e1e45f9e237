"""Every tool on the same process, in rounds: untraced, a tool, untraced, the next tool, ..."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from benchmarks.loads import Kind, Load, Slice, running
from benchmarks.ratios import rotated, slowdown
from benchmarks.results import Cell
from benchmarks.tools import CannotRun, attached, tool_named

Say = Callable[[str], None]

_PARTS = 5
"""Of a slice: their median hides what else the machine did for a moment."""


class _Tally:
    """What the rounds of one tool bring."""

    def __init__(self) -> None:
        self.ratios: list[float] = []
        self.failure = ""
        self._seen = self._made = 0

    def add_seen(self, seen: Optional[int], calls: int) -> None:
        if seen is not None and calls:
            self._seen += seen
            self._made += calls

    def cell(self) -> Cell:
        seen = self._seen / self._made if self._made else None
        return Cell(tuple(self.ratios), seen, self.failure)


def measure(kind: Kind, tools: Sequence[str], rounds: int, seconds: float, say: Say) -> dict[str, Cell]:
    """Return a cell for each tool.  ``seconds`` is the length of one slice."""
    with tempfile.TemporaryDirectory(prefix="ebpftrace-bench-") as name:
        directory = Path(name)
        try:
            with running(kind, directory) as load:
                _rate(load, seconds)  # warm up
                return _rounds(kind, load, tools, rounds, seconds, directory, say)
        except CannotRun as error:
            return {tool: Cell(failure=str(error)) for tool in tools}


def _rounds(
    kind: Kind, load: Load, tools: Sequence[str], rounds: int, seconds: float, directory: Path, say: Say
) -> dict[str, Cell]:
    tallies = {tool: _Tally() for tool in tools}
    before = _rate(load, seconds)[0]
    for turn in range(rounds):
        for name in rotated(tools, turn):
            tally = tallies[name]
            if tally.failure:
                continue
            try:
                traced = _traced(kind, load, name, seconds, directory, tally)
            except CannotRun as error:
                tally.failure = str(error)
                say(f"{kind.name}: {name}: {error}")
                continue
            after, _ = _rate(load, seconds)
            tally.ratios.append(slowdown(before, traced, after))
            say(f"{kind.name}, round {turn + 1}: {name}: {tally.ratios[-1]:.3f}")
            before = after
    return {name: tally.cell() for name, tally in tallies.items()}


def _traced(kind: Kind, load: Load, name: str, seconds: float, directory: Path, tally: _Tally) -> float:
    """Operations per second under the tool."""
    with attached(tool_named(name), load.pid, directory) as tracer:
        rate, done = _rate(load, seconds)
    load.recover()
    if tracer is not None:
        tally.add_seen(tracer.seen(), kind.traced_calls * done)
    return rate


def _rate(load: Load, seconds: float) -> tuple[float, int]:
    """Operations per second, the median of the parts of a slice; and all operations."""
    parts: list[Slice] = []
    for _ in range(_PARTS):
        parts.append(load.work(seconds / _PARTS))
        if not parts[-1].done:
            return 0.0, 0
    return statistics.median(part.rate for part in parts), sum(part.done for part in parts)
