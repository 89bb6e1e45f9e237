# SPDX-License-Identifier: Apache-2.0
"""Waiting for file descriptors: poll(2), since select(2) refuses those from 1,024 on."""

from __future__ import annotations

import select
from collections.abc import Iterable


def readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Wait at most that long until one can be read or has come to its end; return those that can."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in waiting.poll(max(0.0, seconds) * 1000)]
