# SPDX-License-Identifier: Apache-2.0
"""What a followed process is called that has executed another program before it is read."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ebpftrace.capture.kernel_events import ImageExecuted, Settled
from ebpftrace.capture.layout import CallKind
from ebpftrace.model import TargetInfo
from ebpftrace.procfs.files import FileKey
from ebpftrace.sessions.family import Image
from ebpftrace.sessions.watch import Watch
from ebpftrace.unwind.copies import StackCopy
from ebpftrace.unwind.engine import Engine

PROGRAM = ImageExecuted(FileKey("00:1f", 7, "/srv/finale"), os.getpid(), {}, 50)


class Child(Watch):
    """A process that does not run; /proc shows the given name and executable file of it."""

    def __init__(self, comm: str, exe: str, engine: Engine) -> None:
        super().__init__(cast(Any, SimpleNamespace(pid=os.getpid(), exited=False)), engine)
        self.read = (comm, exe)

    def _resolve(self, will_execute: bool) -> Any:  # noqa: ARG002
        return SimpleNamespace(executed=lambda *_: None)

    def begin(self, tracer: Any) -> None:  # noqa: ARG002
        self._info = replace(self._info, comm=self.read[0], exe=self.read[1])

    @property
    def info(self) -> TargetInfo:
        return self._info


@pytest.mark.parametrize(
    ("comm", "exe", "expected"),
    [
        ("true", "/bin/true", ("worker-7", "/srv/finale")),
        ("renamed", "/srv/finale", ("renamed", "/srv/finale")),
        ("renamed", "/srv/finale (deleted)", ("renamed", "/srv/finale (deleted)")),
    ],
)
def test_the_name_is_of_the_program_that_made_the_address_space(
    comm: str, exe: str, expected: tuple[str, str]
) -> None:
    child = Child(comm, exe, Engine())
    settled = Settled(os.getpid(), os.getpid(), "worker-7", 40, 60)
    child.settle(3, settled, Image(PROGRAM), cast(Any, None))
    assert (child.info.comm, child.info.exe) == expected


def test_the_copies_of_all_processes_wait_in_the_same_room() -> None:
    engine = Engine()
    copy = StackCopy(signature=1, at=1, tid=1, registers=b"", memory=bytes(100))
    with Child("one", "/one", engine) as one, Child("two", "/two", engine) as two:
        one.keep_copy(CallKind.MMAP, copy)
        two.keep_copy(CallKind.MMAP, copy)
        assert engine.waiting.used == 200
    assert engine.waiting.used == 0
