# SPDX-License-Identifier: Apache-2.0
"""A curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(values: Sequence[int], width: int) -> str:
    """The values as at most ``width`` blocks, the least as the lowest one; empty where all are equal."""
    if not values or min(values) == max(values):
        return ""
    cells = min(width, len(values))
    bounds = [len(values) * cell // cells for cell in range(cells + 1)]
    # The last of each group: a curve of growth then ends where it ends.
    shown = [values[end - 1] for end in bounds[1:]]
    least, most = min(values), max(values)
    return "".join(_BLOCKS[(value - least) * (len(_BLOCKS) - 1) // (most - least)] for value in shown)


def can_draw(encoding: Optional[str]) -> bool:
    """A stream of this encoding (None: UTF-8) has the blocks."""
    try:
        _BLOCKS.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
