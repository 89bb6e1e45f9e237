# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
from dataclasses import replace

import pytest
from rich.console import Console

from ebpftrace.model import Memory
from ebpftrace.report.live import LiveView, panel
from ebpftrace.report.live_state import LiveState

STATE = LiveState(
    comm="app_server",
    pid=31108,
    elapsed=12.0,
    remaining=17.6,
    mmap=1204,
    munmap=1190,
    outstanding=14,
    outstanding_bytes=14 * 10489856,
    orphaned=3,
    orphaned_bytes=3 * 10489856,
    memory=Memory(1 << 30, (1 << 30) + 10489856, 1 << 20, 1 << 20),
    threads_created=5,
    threads_exited=3,
    threads_only=False,
    lost=0,
)


def shown(state: LiveState) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(panel(state))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def through_terminal(states: list[LiveState]) -> str:
    """What a terminal gets while the view shows these states."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, LiveView(stream, color=False) as view:
        for state in states:
            view.update([state])
    return read_and_closed(leader)


def read_and_closed(leader: int) -> str:
    """All that was written to a terminal whose other side is closed."""
    got = []
    # The kernel hands what was written over bit by bit; EIO is the end.
    with contextlib.suppress(OSError):
        while part := os.read(leader, 1 << 16):
            got.append(part)
    os.close(leader)
    return b"".join(got).decode()


def test_panel_has_every_figure() -> None:
    text = shown(STATE)
    assert "app_server (PID 31108), 18.0 s left" in text
    assert "VIRT 1.0 GiB (+10244 KiB), RSS 1024 KiB (+0)" in text
    assert "14 outstanding (140.1 MiB); 1,204 mmap, 1,190 munmap calls" in text
    assert "3 mappings (30732 KiB) of exited threads" in text
    assert re.search(r"^lost +nothing", text, re.MULTILINE)


def test_panel_reports_losses_and_open_end() -> None:
    text = shown(replace(STATE, remaining=None, lost=7))
    assert "12.0 s so far, Ctrl-C ends it" in text
    assert re.search(r"^LOST +7 events and mappings", text, re.MULTILINE)
    assert "nothing" not in text


def test_terminal_sees_the_figures_change_and_gets_its_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    got = through_terminal([STATE, replace(STATE, comm="evil\x1b]0;x\x07", mmap=9999)])
    assert "1,204 mmap" in got
    assert "9,999 mmap" in got
    assert "\x1b]0" not in got
    assert r"evil\x1b]0;x\x07" in got
    assert got.rindex("\x1b[?25h") > got.rindex("\x1b[?25l")


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_panel_is_no_wider_than_its_own_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Which need not be the one on standard input, nor as wide as it was."""
    monkeypatch.setenv("TERM", "xterm")
    large = replace(STATE, outstanding=1_234_567, outstanding_bytes=1 << 40, orphaned_bytes=1 << 40)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream, LiveView(stream, color=False) as view:
        for now in (200, columns):
            fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, now, 0, 0))
            view.update([large])
    drawn = "tracing" + read_and_closed(leader).rpartition("tracing")[2]
    lines = re.split("[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn))
    assert "1,234,567" in drawn
    assert columns - 20 < max(map(len, lines)) <= columns


def test_dumb_terminal_and_pipe_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with LiveView(stream, color=True) as view:
        view.update([STATE])
    assert stream.getvalue() == ""
    monkeypatch.setenv("TERM", "dumb")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        with LiveView(terminal, color=True) as view:
            view.update([STATE])
        terminal.write("end")
    assert read_and_closed(leader) == "end"


def test_terminal_that_goes_away_does_not_end_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    stream = os.fdopen(follower, "w")
    with LiveView(stream, color=False) as view:
        view.update([STATE])
        os.close(leader)
        view.update([STATE])
        view.update([replace(STATE, mmap=1)])
    with contextlib.suppress(OSError):
        stream.close()


def test_where_only_threads_are_traced_nothing_is_said_of_mappings() -> None:
    text = shown(replace(STATE, threads_only=True))
    assert "5 threads created, 3 exited" in text
    assert "mappings" not in text
    assert "orphaned" not in text
