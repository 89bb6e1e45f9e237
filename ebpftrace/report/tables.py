"""What the reports of looks share: plain tables, columns as wide as what is in them, and times for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from rich.cells import cell_len

from ebpftrace.text import shorten

WIDTH = 100
"""Columns of a page."""

_GAP = "  "
_NARROWEST_LAST = 8


def table(header: str, rows: Iterable[Sequence[str]], *, indent: int = 0, width: int = WIDTH) -> list[str]:
    """Lines of a table; no line is wider than ``width`` cells, none ends in spaces.

    ``header`` names the columns, separated by ``|``; a name that begins with ``>`` is for a column whose
    cells stand to the right.  Cells must be fit to print.
    """
    names = header.split("|")
    right = [name.startswith(">") for name in names]
    lines = [[name.lstrip(">") for name in names], *(list(row) for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(names))]
    room = width - indent - sum(widths[:-1]) - len(_GAP) * (len(names) - 1)
    widths[-1] = min(widths[-1], max(room, _NARROWEST_LAST))
    return [shorten(_line(line, widths, right, indent), width).rstrip() for line in lines]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], indent: int) -> str:
    padded = []
    for cell, width, to_right in zip(cells, widths, right):
        text = shorten(cell, width)
        padding = " " * (width - cell_len(text))
        padded.append(padding + text if to_right else text + padding)
    return " " * indent + _GAP.join(padded)


def short_size(value: int) -> str:
    """Bytes in few cells, as top(1) prints them: ``366.5M``, ``1.2T``; exact figures are in the JSON."""
    magnitude = float(abs(value))
    sign = "-" if value < 0 else ""
    for unit in "BKMGT":
        if magnitude < 999.95 or unit == "T":
            break
        magnitude /= 1024
    return f"{sign}{magnitude:.0f}{unit}" if unit in "BK" else f"{sign}{magnitude:.1f}{unit}"


def wrapped(text: str, *, first: str = "", width: int = WIDTH) -> list[str]:
    """Text broken between words, later lines below the end of ``first``; a long word is cut in the middle."""
    indent = " " * cell_len(first)
    lines: list[str] = []
    line = first
    empty = True
    for word in text.split(" "):
        word = shorten(word, width - len(indent))
        if not empty and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line.rstrip())
            line, empty = indent, True
        line += word if empty else f" {word}"
        empty = False
    return [*lines, line.rstrip()]


def iso_time(wall_ns: int) -> str:
    """ISO 8601 in local time with offset, from ns since the epoch."""
    moment = datetime.fromtimestamp(wall_ns // 1_000_000_000, timezone.utc)
    return moment.replace(microsecond=wall_ns % 1_000_000_000 // 1000).astimezone().isoformat()
