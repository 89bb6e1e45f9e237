# SPDX-License-Identifier: Apache-2.0
"""In which order ``growth`` reads several processes and unwinds their stacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ebpftrace.model import EndedBy
from ebpftrace.sessions import growth, growth_watch

PROCESSES = 35
WAITING = 100


class Busy:
    """A process of which another stack comes with each that is unwound, of whichever process."""

    all: list[Busy]
    unwound = 0

    def __init__(self, number: int) -> None:
        self.serial = self.space = self.pid = number
        self.stacks = WAITING
        self.begun, self.ended_by, self.began_at, self.lived_ns = True, None, 0, 1 << 60
        self.info = self.clock = None

    def first_moment(self, _: object) -> SimpleNamespace:
        return SimpleNamespace(size=1)

    def moment(self, _: object) -> SimpleNamespace:
        return SimpleNamespace(size=1, stacks=self.stacks)

    def unwind(self, most: int) -> None:
        unwound = min(self.stacks, most)
        self.stacks -= unwound
        Busy.unwound += unwound
        for other in Busy.all:
            other.stacks += unwound


class Record:
    """Of a process that has not changed."""

    resident = None
    first_size = 1
    has_changed = False

    def __init__(self, *_: object) -> None:
        pass

    def sample(self, moment: SimpleNamespace) -> SimpleNamespace:
        return moment

    def summary(self, *_: object) -> SimpleNamespace:
        return SimpleNamespace()


def test_stacks_that_come_while_others_are_unwound_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is left to do grows by its own rate with each process."""
    monkeypatch.setattr(growth_watch, "Record", Record)
    monkeypatch.setattr(growth, "replace", lambda _, **changes: SimpleNamespace(**changes, ended_by=None))
    Busy.all, Busy.unwound = [Busy(number) for number in range(PROCESSES)], 0
    nothing: Any = SimpleNamespace(
        living=list, poll=lambda: None, now=lambda: SimpleNamespace(cpu_seconds=0.0),
        began=lambda *_: None, step=lambda *_: None,
    )  # fmt: skip
    records = growth._Records(
        cast(Any, Busy.all), nothing, nothing, nothing, nothing,
        interval=1.0, is_command=False, sampler=None, fault_period=None,
    )  # fmt: skip
    records.begin()
    records.due(cast(Any, Busy.all))
    assert Busy.unwound == PROCESSES * WAITING
    waited = sum(process.stacks for process in Busy.all)
    records.read(cast(Any, Busy.all))
    for process in Busy.all:
        records.end(cast(Any, process), EndedBy.DURATION)
    assert Busy.unwound == PROCESSES * WAITING + waited
    assert len(records.summaries) == PROCESSES
