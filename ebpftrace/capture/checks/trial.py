# SPDX-License-Identifier: Apache-2.0
"""The last check: compile, load and attach a real program."""

from __future__ import annotations

import os
import subprocess
import sys

from ebpftrace.capture.sources import CompilerThread
from ebpftrace.installation import import_path
from ebpftrace.model import Check


def check_trial() -> Check:
    """Compile, load and attach a program that does nothing, in a separate process.

    bcc writes the compiler's messages to the standard streams and may crash.
    """
    script = "from ebpftrace.capture.checks.trial import run_trial; run_trial()"
    try:
        trial = subprocess.run(
            [sys.executable, "-c", script],
            cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("trial", False, "a BPF program was not loaded within 60 seconds")
    if trial.returncode == 0:
        return Check("trial", True, "a BPF program compiled, loaded and attached")
    return Check(
        "trial", False, f"a BPF program could not be loaded: {_reason(trial.stderr, trial.returncode)}"
    )


def _reason(stderr: str, status: int) -> str:
    """Return the reason: the compiler's first error, else the last line of Python's traceback."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if not lines:
        return f"exit status {status}"
    return next((line for line in lines if ": error: " in line or ": fatal error: " in line), lines[-1])


def run_trial() -> None:
    """Attach a program that does nothing, and detach it; any failure is an exception."""
    from bcc import BPF

    program = CompilerThread(
        lambda: BPF(text="TRACEPOINT_PROBE(syscalls, sys_exit_mmap) { return 1; }")
    ).wait()
    program.cleanup()
