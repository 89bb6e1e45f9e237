"""Memory that is free inside this process goes back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Have malloc return what is freed (malloc_trim(3)): it would keep tens of MiB, for a next time."""
    with suppress(AttributeError):  # musl's malloc has no such function, and keeps less
        ctypes.CDLL(None).malloc_trim(0)
