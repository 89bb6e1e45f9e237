# SPDX-License-Identifier: Apache-2.0
"""How long ``ebpftrace scan`` takes, and how that grows with the number of processes on the host."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.results import Scan
from benchmarks.tools import ROOT, CannotRun

CROWDS = (0, 300, 1000)
"""Processes that are started besides those that the host runs anyway."""

_THREADS = 3
_CROWD = (
    "import sys, threading\n"
    f"for _ in range({_THREADS}): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "print('ready', flush=True)\nsys.stdin.read()"
)
_COMMAND = (sys.executable, "-m", "ebpftrace", "scan", "--json", "--top", "100000")


def measure(started: int, rounds: int) -> Scan:
    """Scan that often beside ``started`` idle processes with threads, and keep the fastest.

    Raises CannotRun, OSError, CalledProcessError.
    """
    with _crowd(started):
        return min((_scan() for _ in range(rounds)), key=lambda scan: scan.cpu_seconds)


@contextlib.contextmanager
def _crowd(number: int) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        processes = []
        for _ in range(number):
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", _CROWD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            held.callback(process.wait)
            held.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise CannotRun(f"only a part of {number} processes could be started")
        yield


def _scan() -> Scan:
    began, before = time.monotonic(), _childrens_cpu()
    result = subprocess.run(_COMMAND, cwd=ROOT, capture_output=True, check=True).stdout
    # With the start of Python: nobody gets around it.
    seconds, cpu_seconds = time.monotonic() - began, _childrens_cpu() - before
    return Scan(json.loads(result)["counts"]["processes"], seconds, cpu_seconds)


def _childrens_cpu() -> float:
    """Of those that have ended and were waited for, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
