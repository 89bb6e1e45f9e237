# SPDX-License-Identifier: Apache-2.0
"""The width of a page, and plain tables whose columns are as wide as their contents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from ebpftrace.text import shorten

WIDTH = 100
"""Columns of a page in a file and on a pipe."""
WIDEST = 120
"""Columns of a page on a wide terminal: longer lines are hard to read."""
NARROWEST = 60
"""Columns that a page needs: a terminal that has fewer wraps it."""

_GAP = "  "
_BREAK = re.compile(r"(?<!\d) | (?![A-Za-z%])")
"""A space where a line may end: not between a number and its unit."""
_MIN_LAST = 16
"""Cells of the last column where it is cut: an address is never."""


def table(
    header: str,
    rows: Iterable[Sequence[str]],
    *,
    indent: int = 0,
    width: int = WIDTH,
    optional: Iterable[str] = (),
    fold: bool = False,
) -> list[str]:
    """Lines of a table in ``width`` cells; none ends in spaces.

    ``header`` names the columns, separated by ``|``; a name that begins with ``>`` is for a right-aligned
    column.  Cells must be printable.  If not all columns fit, those in ``optional`` are left out, in this
    order, until the others fit.  The last column gets the remaining width: a longer text is cut in its middle
    or, with ``fold``, continued on the next line.
    """
    names = header.split("|")
    lines = [[name.lstrip(">") for name in names], *rows]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(names))]
    shown = list(range(len(names)))
    hidden: list[int] = []
    for name in optional:
        if _least(shown, names, widths, indent) <= width:
            break
        hidden.append(lines[0].index(name))
        shown.remove(hidden[-1])
    for column in reversed(hidden):
        more = sorted([*shown, column])
        if _least(more, names, widths, indent) <= width:
            shown = more
    *columns, last = shown
    if names[last].startswith(">"):
        columns, last = shown, -1
    page: list[str] = []
    for line in lines:
        start = " " * indent + _GAP.join(
            _cell(line[column], widths[column], names[column]) for column in columns
        )
        if last < 0:
            page.append(start)
            continue
        start += _GAP if columns else ""
        available = max(width - cell_len(start), _MIN_LAST)
        if fold and cell_len(line[last]) > available:
            page += wrapped(line[last], first=start, width=width)
        else:
            page.append((start + shorten(line[last], available)).rstrip())
    return page


def _least(shown: Sequence[int], names: Sequence[str], widths: Sequence[int], indent: int) -> int:
    """Cells that these columns need."""
    *_, last = shown
    saved = 0 if names[last].startswith(">") else max(widths[last] - _MIN_LAST, 0)
    return indent + sum(widths[column] for column in shown) + len(_GAP) * (len(shown) - 1) - saved


def _cell(text: str, width: int, name: str) -> str:
    padding = " " * (width - cell_len(text))
    return padding + text if name.startswith(">") else text + padding


def wrapped(text: str, *, first: str = "", width: int = WIDTH, cut: bool = True) -> list[str]:
    """Text broken between words, later lines below the end of ``first``; a number keeps its unit.

    A word that is longer than a line is cut in its middle, or stays whole where ``cut`` is false.
    """
    indent = " " * cell_len(first)
    lines: list[str] = []
    line = first
    empty = True
    for word in _BREAK.split(text):
        word = shorten(word, width - len(indent)) if cut else word
        if not empty and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line.rstrip())
            line, empty = indent, True
        line += word if empty else f" {word}"
        empty = False
    return [*lines, line.rstrip()]
