# SPDX-License-Identifier: Apache-2.0
"""Whether ratios have become worse than the recorded ones; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.results import Table

_TOLERANCE = 0.05
"""Of a ratio: what two good runs on different days differ."""


def regressions(recorded: Table, now: Table, tools: Sequence[str], floor: str) -> Iterator[str]:
    """Yield a line for each tool and kind that is worse than recorded.

    What the machine makes dearer shows in the floor (empty probes) as well, and is taken out.  A
    median counts as worse only where even the best round is beyond what was recorded.
    """
    for kind, cells in now.items():
        machine = _drift(recorded, now, kind, floor)
        for tool in tools:
            was = recorded[kind][tool].spread if tool in recorded.get(kind, {}) else None
            cell = cells.get(tool)
            if cell is None or was is None:
                continue
            if cell.spread is None:
                yield f"{kind}: {tool}: was {was.median:.2f}, now not measured: {cell.failure}"
                continue
            limit = was.median * machine * (1 + _TOLERANCE)
            if cell.spread.median > limit and cell.spread.low > was.median * machine:
                yield (
                    f"{kind}: {tool}: was {was.median:.2f}, now {cell.spread.median:.2f} "
                    f"({cell.spread.low:.2f}-{cell.spread.high:.2f}), limit {limit:.2f}"
                )


def _drift(recorded: Table, now: Table, kind: str, floor: str) -> float:
    """By how much the cost of empty probes has risen, as a factor; never below 1."""
    cells = recorded.get(kind, {}).get(floor), now[kind].get(floor)
    spreads = [cell.spread for cell in cells if cell is not None and cell.spread]
    return max(1.0, spreads[1].median / spreads[0].median) if len(spreads) == len(cells) else 1.0
