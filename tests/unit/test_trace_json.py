# SPDX-License-Identifier: Apache-2.0
"""``trace --json``: each event as a line that its schema accepts."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Clock, Frame, Stack
from ebpftrace.report.trace_json import JsonTranscript
from ebpftrace.strace.events import Ended, Event, Executed, Executes, Leaves, Returned, Stacked, Text

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "ebpftrace" / "report" / "schema" / "trace-1.json").read_text()
)
CLOCK = Clock(monotonic_ns=1_000_000_000, realtime_ns=1_800_000_000_000_000_000)


def lines(*events: Event) -> list[dict[str, Any]]:
    transcript = JsonTranscript(CLOCK)
    written = [json.loads(line) for event in events for line in transcript.lines(event)]
    for line in written:
        jsonschema.validate(line, SCHEMA)
    return written


def returned(
    result: int, *, name: str = "munmap", entered_at: int = 1_500_000_000, lost: int = 0
) -> Returned:
    return Returned(2_000_000_000, 12, 11, name, (0x1000, 4096, 0, 0, 0, 0), result, entered_at, lost)


def executes(tid: int, at: int) -> Executes:
    return Executes(at, tid, 11, Text(1, b"/bin/ls"), 2, (Text(3, b"ls"),), False, None, 4, 9, False, 0)


def test_a_call_is_an_object() -> None:
    (line,) = lines(returned(0))
    assert line["at"] == 1_800_000_000.5
    assert (line["pid"], line["tid"], line["call"], line["returned"], line["error"]) == (
        11,
        12,
        "munmap",
        0,
        None,
    )
    assert line["arguments"] == "0x1000, 4096"
    assert line["seconds"] == 0.5


def test_a_call_that_fails() -> None:
    (line,) = lines(returned(-errno.ENOMEM, entered_at=0))
    assert (line["returned"], line["error"], line["seconds"]) == (None, "ENOMEM", None)
    assert line["at"] == 1_800_000_001.0


def test_an_address_is_not_negative() -> None:
    (line,) = lines(returned(0x7F00_0000_0000, name="mmap"))
    assert line["returned"] == 0x7F00_0000_0000


def test_an_execve_of_another_thread_than_the_first() -> None:
    began, done = 1_200_000_000, 1_300_000_000
    call = Returned(done, 11, 11, "execve", (0,) * 6, 0, began, 0)
    (line,) = lines(executes(12, began), Executed(done, 11, 11, 12, 0), call)
    assert line["arguments"].startswith('"/bin/ls", ["ls"]')


def test_the_end_of_a_thread() -> None:
    exited, killed = lines(Ended(1, 12, 11, 3 << 8, 0), Ended(1, 12, 11, 9, 0))
    assert (exited["exit_status"], exited["signal"]) == (3, None)
    assert (killed["exit_status"], killed["signal"]) == (None, 9)


def test_a_call_that_never_returns() -> None:
    (line,) = lines(Leaves(1, 12, 11, "exit_group", (3, 0, 0, 0, 0, 0), 0))
    assert (line["call"], line["returned"], line["error"]) == ("exit_group", None, None)


def test_a_stack() -> None:
    frame = Frame("main", "a\udcff.c", 3, "/bin/a", 0x40)
    _, line = lines(returned(0), Stacked(2_000_000_000, 12, Stack((frame,), complete=True)))
    assert line["stack"]["frames"][0]["function"] == "main"


def test_losses_are_counted_once() -> None:
    written = lines(returned(0, lost=3), returned(0, lost=3), returned(0, lost=5))
    assert [line["calls"] for line in written if line["kind"] == "lost"] == [3, 2]


@given(st.binary(max_size=40), st.integers(-(1 << 63), (1 << 63) - 1))
def test_any_text_and_any_result_fit_the_schema(path: bytes, result: int) -> None:
    lines(executes(12, 5)._replace(path=Text(1, path)), returned(result, name="execve"))
