# SPDX-License-Identifier: Apache-2.0
"""A COMMAND that is started to be traced: found or refused by name, and what is said of it in the end."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Optional

import pytest

from ebpftrace.errors import CannotTrace
from ebpftrace.model import CommandEnd
from ebpftrace.sessions.command import Command, how_it_ended


def end_of(script: str) -> CommandEnd:
    """What is said of a shell that runs a script to its end."""
    reported: list[CommandEnd] = []
    with Command(["sh", "-c", script], reported.append) as command:
        command.go()
        os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
    (end,) = reported
    assert end.argv == ("sh", "-c", script)
    return end


def refusal(name: str) -> str:
    with pytest.raises(CannotTrace) as refused:
        Command([name], lambda _: None)
    return str(refused.value)


@pytest.mark.parametrize(
    ("script", "status", "signal_number", "passed_on", "line"),
    [
        ("exit 0", 0, None, 0, ""),
        ("exit 7", 7, None, 7, "COMMAND exited with 7"),
        ("kill -KILL $$", None, 9, 137, "COMMAND was killed by signal 9 (Killed)"),
    ],
)
def test_what_became_of_it(
    script: str, status: Optional[int], signal_number: Optional[int], passed_on: int, line: str
) -> None:
    end = end_of(script)
    assert (end.exit_status, end.signal, end.runs) == (status, signal_number, False)
    assert (end.status, how_it_ended(end)) == (passed_on, line)


def test_one_that_still_runs_is_reported() -> None:
    reported: list[CommandEnd] = []
    with Command(["sleep", "600"], reported.append) as command:
        command.go()
    os.kill(command.pid, signal.SIGKILL)
    os.waitpid(command.pid, 0)
    assert [(end.runs, end.status, how_it_ended(end)) for end in reported] == [
        (True, 0, f"COMMAND still runs: PID {command.pid}")
    ]


def test_one_that_was_never_asked_to_go_is_not_reported() -> None:
    reported: list[CommandEnd] = []
    with Command(["false"], reported.append):
        pass
    assert reported == []


def test_whoever_ignores_its_children_is_not_reported_how_they_ended() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Command(["sh", "-c", "exit 7"], lambda _: None) as command:
            command.go()
            end = command.end(has_ended=True)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (end.exit_status, end.signal, end.runs, end.status) == (None, None, False, 0)


def test_of_one_that_has_ended_the_status_is_waited_for() -> None:
    with Command(["sh", "-c", "sleep 0.2; exit 7"], lambda _: None) as command:
        command.go()
        assert command.end().runs
        assert command.end(has_ended=True).exit_status == 7


@pytest.mark.parametrize(
    ("number", "raised", "printed"),
    [
        (signal.SIGINT, KeyboardInterrupt, ""),
        (signal.SIGTERM, CannotTrace, "COMMAND was killed by signal 15 (Terminated) before it began"),
    ],
)
def test_one_that_a_signal_ends_before_it_begins(
    number: int, raised: type[BaseException], printed: str
) -> None:
    """As Ctrl-C in a terminal does while the tracer attaches: it goes to both."""
    with pytest.raises(raised) as refused, Command(["true"], lambda _: None) as command:  # noqa: PT012
        os.kill(command.pid, number)
        os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
        command.go()
    assert str(refused.value) == printed


def test_a_failure_of_ours_stays_one() -> None:
    with pytest.raises(CannotTrace, match="no tracefs"), Command(["true"], lambda _: None):
        raise CannotTrace("no tracefs")


def test_a_directory_is_named_as_one(tmp_path: Path) -> None:
    assert refusal(f"{tmp_path}/") == f"cannot execute '{tmp_path}/': it is a directory"


def test_what_is_not_executable_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o644)
    expected = f"cannot execute '{program}': it is not executable: chmod +x, or give another path"
    assert refusal(str(program)) == expected
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal("server") == expected


def test_what_the_kernel_cannot_execute_is_reported(tmp_path: Path) -> None:
    program = tmp_path / "no\udcffprogram"
    program.write_text("neither a binary nor a script")
    program.chmod(0o755)
    with Command([str(program)], lambda _: None) as command, pytest.raises(CannotTrace) as refused:
        command.go()
    assert str(refused.value) == f"cannot execute '{tmp_path}/no\\xffprogram': Exec format error"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("", ""), ("no-such-program", "no-such-program"), ("/no/such\udcff\n", r"/no/such\xff\n")],
)
def test_what_is_not_there_is_reported(name: str, shown: str) -> None:
    expected = rf"there is no program '{re.escape(shown)}': .*spelling"
    assert re.fullmatch(expected, refusal(name))
