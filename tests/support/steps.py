# SPDX-License-Identifier: Apache-2.0
"""How much Python work a call takes: counted, because a clock also counts what else the machine does."""

from __future__ import annotations

import gc
import sys
from typing import Any, Callable


def lines_run(function: Callable[..., object], *arguments: object) -> int:
    """Lines of Python that ``function(*arguments)`` runs, every turn of a loop counted anew."""
    lines = 0

    def tracer(_frame: object, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return tracer

    before = sys.gettrace()
    # What the collector calls is not ours: finalizers of other tests, callbacks of hypothesis.
    gc.disable()
    sys.settrace(tracer)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
        gc.enable()
    return lines
