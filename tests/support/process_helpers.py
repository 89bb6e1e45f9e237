# SPDX-License-Identifier: Apache-2.0
"""Starts small programs whose processes the tests of procfs read."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def running(*command: object) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A program and its first line; it ends when its stdin is closed."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


@contextmanager
def gone() -> Iterator[int]:
    """The PID of a process that has ended, and that nobody gets meanwhile: it still numbers a session."""
    script = "sleep 600 >/dev/null & echo $!"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        member = int(process.stdout.readline())
        process.wait()
        try:
            yield process.pid
        finally:
            os.kill(member, signal.SIGKILL)


def kernel_thread() -> int:
    """kthreadd's PID; skips the test in a PID namespace, which has none."""
    name = Path("/proc/2/comm")
    if not name.exists() or name.read_text() != "kthreadd\n":
        pytest.skip("no kernel thread in sight")
    return 2


def compiled(directory: Path, source: str) -> Path:
    (directory / "target.c").write_text(source)
    subprocess.run(["gcc", "-w", "-O1", "-pthread", "-o", "target", "target.c"], cwd=directory, check=True)
    return directory / "target"
