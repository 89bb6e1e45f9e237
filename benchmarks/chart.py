# SPDX-License-Identifier: Apache-2.0
"""The side-by-side table as an SVG; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from benchmarks.ratios import NO_PROGRESS
from benchmarks.results import Cell, Results

TITLE = "How many times slower a process runs under each tool"
_COLUMNS = 2
_PANEL_WIDTH = 490
_LABELS = 190
_FIGURES = 84
_BAR = 14
_ROW = 20
_HEADING = 46
_MARGIN = 12
_HIGHEST = 1000.0
"""Ratio at which bars end; the axis is logarithmic from 1."""
_OURS_COLOR = "#0b7a75"
_OTHER_COLOR = "#9aa5b1"
_TEXT_COLOR = "#1f2933"
_FAINT_COLOR = "#616e7c"
_GRID_COLOR = "#e4e7eb"


def render(results: Results, kinds: Sequence[tuple[str, str]], ours: str) -> str:
    """One panel for each kind of load, one bar for each tool that was measured.

    ``kinds`` are names and what each does; bars of tools whose name begins with ``ours`` stand out.
    """
    shown = [(name, what, _measured(results.table[name])) for name, what in kinds if name in results.table]
    rows = [shown[first : first + _COLUMNS] for first in range(0, len(shown), _COLUMNS)]
    heights = [_HEADING + _ROW * max(len(cells) for _, _, cells in row) for row in rows]
    width, height = _COLUMNS * _PANEL_WIDTH, 2 * _MARGIN + sum(heights)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{_TEXT_COLOR}">',
        f"<title>{TITLE}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    top = _MARGIN
    for row, row_height in zip(rows, heights):
        for column, (name, what, cells) in enumerate(row):
            parts.append(f'<g transform="translate({column * _PANEL_WIDTH} {top})">')
            parts += [*_panel(f"{name}: {what}", cells, ours), "</g>"]
        top += row_height
    return "\n".join([*parts, "</svg>"]) + "\n"


def _measured(cells: Mapping[str, Cell]) -> list[tuple[str, float]]:
    medians = [(tool, cell.spread.median) for tool, cell in cells.items() if cell.spread]
    return sorted(medians, key=lambda entry: entry[1])


def _panel(title: str, cells: Sequence[tuple[str, float]], ours: str) -> list[str]:
    rows = _HEADING
    parts = [f'<text x="{_MARGIN}" y="22" font-weight="bold">{escape(title)}</text>']
    for power in range(round(math.log10(_HIGHEST)) + 1):
        x = _x(10.0**power)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{rows - 4}" y2="{rows + _ROW * len(cells) - 4}" '
            f'stroke="{_GRID_COLOR}"/>'
            f'<text x="{x:.1f}" y="{rows - 7}" text-anchor="middle" font-size="10" '
            f'fill="{_FAINT_COLOR}">{10**power}</text>'
        )
    for index, (tool, ratio) in enumerate(cells):
        y = rows + _ROW * index
        end = _x(ratio)
        color = _OURS_COLOR if tool.startswith(ours) else _OTHER_COLOR
        figure = "no progress" if ratio == NO_PROGRESS else f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}"
        parts.append(
            f'<text x="{_LABELS - 8}" y="{y + 11}" text-anchor="end">{escape(tool)}</text>'
            f'<rect x="{_LABELS}" y="{y}" width="{end - _LABELS + 1:.1f}" height="{_BAR}" fill="{color}"/>'
            f'<text x="{end + 6:.1f}" y="{y + 11}">{figure}</text>'
        )
    return parts


def _x(ratio: float) -> float:
    share = math.log10(min(max(ratio, 1.0), _HIGHEST)) / math.log10(_HIGHEST)
    return _LABELS + share * (_PANEL_WIDTH - _LABELS - _FIGURES)
