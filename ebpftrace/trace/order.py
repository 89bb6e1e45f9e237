# SPDX-License-Identifier: Apache-2.0
"""Events of several processors in the order of time."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Something that happened to a task."""

    @property
    def at(self) -> int:
        """ns of CLOCK_MONOTONIC."""

    @property
    def tid(self) -> int:
        """The task."""


T = TypeVar("T", bound=Timed)

WINDOW = 20_000_000
"""ns that an event may come late and still find its place."""

_by_time = attrgetter("at", "tid")


class Ordered(Generic[T]):
    """Sorts what comes nearly sorted; events of one task keep their order, and a stack follows its call."""

    def __init__(self) -> None:
        self._waiting: list[T] = []

    def add(self, events: Iterable[T]) -> None:
        """Take in events as they came."""
        self._waiting.extend(events)

    def take(self, until: int) -> list[T]:
        """Hand out, in order, all events up to this time."""
        self._waiting.sort(key=_by_time)  # stable
        ready = 0
        while ready < len(self._waiting) and self._waiting[ready].at <= until:
            ready += 1
        taken, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return taken
