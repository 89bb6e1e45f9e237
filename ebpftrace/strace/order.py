# SPDX-License-Identifier: Apache-2.0
"""Sorts the events of several CPUs by time."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """An event of a task."""

    @property
    def at(self) -> int:
        """ns of CLOCK_MONOTONIC."""

    @property
    def tid(self) -> int:
        """Tid of the task."""


T = TypeVar("T", bound=Timed)

WINDOW = 20_000_000
"""ns by which an event may arrive late and still be sorted correctly."""

_by_time = attrgetter("at", "tid")


class Ordered(Generic[T]):
    """Sorts nearly sorted events; those of one task keep their order, so a stack follows its call."""

    def __init__(self) -> None:
        self._waiting: list[T] = []

    def add(self, events: Iterable[T]) -> None:
        """Add events in the order in which they arrived."""
        self._waiting.extend(events)

    def take(self, until: int) -> list[T]:
        """Remove and return all events up to this time, in order."""
        self._waiting.sort(key=_by_time)  # stable
        ready = 0
        while ready < len(self._waiting) and self._waiting[ready].at <= until:
            ready += 1
        taken, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return taken
