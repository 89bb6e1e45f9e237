# SPDX-License-Identifier: Apache-2.0
"""While a trace runs: a terminal sees how it goes, a pipe nothing of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness import PATIENCE, ROOT, TRACER, Target, kernel_skips_runs, run_tracer

from ebpftrace import text

COUNT = 7
STACK_BYTES = 40960
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The side of a pseudo terminal that a user sits at."""

    def __init__(self) -> None:
        self._leader, self.follower = pty.openpty()
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.raw = ""

    @property
    def shown(self) -> str:
        """All lines it ever showed."""
        return ESCAPES.sub("", self.raw)

    def until(self, wanted: Callable[[], bool]) -> None:
        """Reads until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not wanted():
            assert self._read(deadline), f"not shown within {PATIENCE:.0f} s: {self.shown[-2000:]}"

    def to_its_end(self) -> None:
        """Reads what is left; nobody may have the other side open any more."""
        with suppress(OSError):  # EIO is the end
            while self._read(time.monotonic() + PATIENCE):
                pass
        os.close(self._leader)

    def _read(self, deadline: float) -> bool:
        """Whether something came."""
        readable, _, _ = select.select([self._leader], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(self._leader, 1 << 16) if readable else b""
        self.raw += part.decode()
        return bool(part)


def virtual_bytes(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_terminal_sees_how_it_goes() -> None:
    terminal = Terminal()
    orphans = f"{COUNT} mappings ({text.size(COUNT * STACK_BYTES)}) of exited threads"
    with Target("reproducer", COUNT) as target:
        process = subprocess.Popen(
            [*TRACER, "-p", str(target.pid), "-d", "3600", "--min-age", "0"],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal.follower,
            text=True,
        )
        os.close(terminal.follower)
        with process:
            try:
                terminal.until(lambda: "of exited threads" in terminal.shown)
                before = virtual_bytes(target.pid)
                target.run()
                now = virtual_bytes(target.pid)
                terminal.until(
                    lambda: orphans in terminal.shown and f"VIRT {text.size(now)} (" in terminal.shown
                )
                process.send_signal(signal.SIGINT)
                report, _ = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        terminal.to_its_end()
    assert process.returncode == 0
    assert now - before >= COUNT * STACK_BYTES
    lines = [line.rstrip() for line in re.split("[\r\n]+", terminal.shown)]
    assert lines[0] == "attached"
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("tracing")) :]
    assert re.fullmatch(rf"tracing +reproducer \(PID {target.pid}\), .+ left, Ctrl-C ends it now", last[0])
    grown = re.escape(text.change(before, now))
    assert re.fullmatch(rf"memory +VIRT {text.size(now)} \({grown}\), RSS .+ \(.+\)", last[1])
    outstanding = re.escape(f"{COUNT} outstanding ({text.size(COUNT * STACK_BYTES)})")
    assert re.fullmatch(rf"mappings +{outstanding}; {COUNT} mmap, 0 munmap calls", last[2])
    assert re.fullmatch(rf"orphaned +{re.escape(orphans)}", last[3])
    if not kernel_skips_runs():
        assert re.fullmatch("lost +nothing", last[4])
    # It is wiped away, and the cursor is back; the report is plain.
    assert terminal.raw.rindex("\x1b[2K") > terminal.raw.rindex("orphaned")
    assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l")
    assert report.startswith("LEAK (")
    assert "\x1b" not in report


def test_pipe_sees_nothing_of_it() -> None:
    with Target("reproducer", 0) as target:
        result = run_tracer("-p", target.pid, "-d", 2.5, env={**os.environ, "TERM": "xterm"})
    assert (result.status, result.stderr) == (0, "attached\n")
    assert "\x1b" not in result.stdout
