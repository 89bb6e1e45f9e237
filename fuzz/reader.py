# SPDX-License-Identifier: Apache-2.0
"""A reader under test: what it begins with, what it may answer, and within which bounds."""

from __future__ import annotations

import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Callable, NoReturn, Optional

CPU_SECONDS = 2.0
"""For one input, which has at most ``MOST_BYTES``."""
MEMORY_BYTES = 512 << 20
"""On top of what the process has when it begins."""
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Reader:
    """Reads bytes of a target; ``read`` also asserts what must hold of the result."""

    name: str
    read: Callable[[bytes], object]
    """What it gives is true where it made something of the bytes."""
    seeds: Callable[[], Sequence[bytes]]
    """Sound inputs, small ones."""
    refusals: tuple[type[Exception], ...] = ()
    """What its docstring says it raises."""


class TooSlow(BaseException):
    """Out of CPU time.  No ``Exception``: a reader that catches those must not catch this."""


def examine(reader: Reader, data: bytes) -> bool:
    """Whether the reader made something of ``data``; what it must not raise is let out, and ``TooSlow``."""
    before = signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return bool(reader.read(data))
    except reader.refusals:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def limit_memory() -> None:
    """From now on this process gets ``MEMORY_BYTES`` more, then ``MemoryError``."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _out_of_time(_: int, __: Optional[FrameType]) -> NoReturn:
    raise TooSlow(f"more than {CPU_SECONDS:g} s of CPU time")
