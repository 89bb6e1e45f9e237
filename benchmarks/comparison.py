"""Whether ratios have become worse than the recorded ones; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.results import Table

_TOLERANCE = 0.05
"""Of a ratio: what two good runs on different days differ."""


def regressions(recorded: Table, now: Table, tools: Sequence[str], floor: str) -> Iterator[str]:
    """Yield a line for each tool and kind that is worse than recorded.

    What the machine makes dearer shows in the floor (empty probes) as well, and is taken out.
    """
    for kind, cells in now.items():
        machine = _drift(recorded, now, kind, floor)
        for tool in tools:
            was = recorded[kind][tool].spread if tool in recorded.get(kind, {}) else None
            cell = cells.get(tool)
            if cell is None or was is None:
                continue
            if cell.spread is None:
                yield f"{kind}: {tool}: was {was.fastest:.2f}, now not measured: {cell.failure}"
                continue
            limit = was.fastest * machine * (1 + _TOLERANCE)
            if cell.spread.fastest > limit:
                yield (
                    f"{kind}: {tool}: was {was.fastest:.2f}, now {cell.spread.fastest:.2f}, limit {limit:.2f}"
                )


def _drift(recorded: Table, now: Table, kind: str, floor: str) -> float:
    """How much dearer empty probes have become; never below 1."""
    cells = recorded.get(kind, {}).get(floor), now[kind].get(floor)
    spreads = [cell.spread for cell in cells if cell is not None and cell.spread]
    return max(1.0, spreads[1].fastest / spreads[0].fastest) if len(spreads) == len(cells) else 1.0
