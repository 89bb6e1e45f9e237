# SPDX-License-Identifier: Apache-2.0
"""What fails when the programs are loaded or attached already: one line, and nothing of them stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, TRACER, Result, eventually, read_unless_gone, run_tracer
from test_harm import Started
from test_lifecycle import assert_gone, assert_one_line
from test_procfs import elf32_that_pauses


def contains(tracer: Started, pid: int) -> bool:
    """Whether it has a file descriptor of the process (pidfd_open(2))."""
    with suppress(FileNotFoundError):
        infos = Path(f"/proc/{tracer.pid}/fdinfo").iterdir()
        return any(f"Pid:\t{pid}\n" in read_unless_gone(info) for info in infos)
    return False


def ended(tracer: Started) -> Result:
    """What it left; no program and no table that was ever seen with it is in the kernel any more."""
    programs: set[int] = set()
    tables: set[int] = set()

    def has_ended() -> bool:
        with suppress(FileNotFoundError):
            programs.update(tracer.bpf_ids("prog"))
            tables.update(tracer.bpf_ids("map"))
        return tracer.process.poll() is not None

    eventually(has_ended, "the tracer ends")
    if programs and tables:
        assert_gone(programs, tables)
    return tracer.wait()


def test_target_that_ends_while_the_tracer_attaches() -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        try:
            tracer = Started([*TRACER, "--json", "-d", 3600, "-p", sleeper.pid])
            eventually(lambda: contains(tracer, sleeper.pid), "the tracer holds its target")
        finally:
            sleeper.kill()
    result = ended(tracer)
    if result.status == 0:  # it was attached by then
        assert result.report["window"]["ended_by"] == "target-exit"
    else:
        assert_one_line(result, 1, f"process {sleeper.pid} has exited")


def test_command_that_only_the_kernel_refuses(tmp_path: Path) -> None:
    """It looks like a program, and so is asked for when the probes are live."""
    command = tmp_path / "no-program"
    command.write_bytes(b"\x7fELF, but no more")
    command.chmod(0o755)
    result = ended(Started([*TRACER, "-d", 3600, "--", command]))
    assert (result.status, result.stdout) == (1, "")
    assert result.stderr == f"attached\nebpftrace: cannot execute '{command}': Exec format error"


@pytest.fixture
def i386(tmp_path: Path) -> Path:
    program = tmp_path / "i386"
    program.write_bytes(elf32_that_pauses(3))
    program.chmod(0o755)
    return program


def test_32_bit_command(i386: Path) -> None:
    """Its calls are others than those that we see: "no leak" would be a lie."""
    assert_one_line(run_tracer("-d", 600, "--", i386), 1, "i386' is a 32-bit program: only 64-bit programs")


def test_command_with_a_32_bit_interpreter(i386: Path, tmp_path: Path) -> None:
    """What it is shows only when it runs; then it goes on without us."""
    try:
        with subprocess.Popen([i386]) as process:
            process.kill()
    except OSError:
        pytest.skip("this kernel does not run such programs")
    script = tmp_path / "script"
    script.write_text(f"#!{i386}\n")
    script.chmod(0o755)
    # It keeps the streams that it was given.
    with (tmp_path / "said").open("w") as printed:
        command = [*TRACER, "-d", "600", "--", str(script)]
        ended = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=printed, timeout=PATIENCE, check=False
        )
    reported = (tmp_path / "said").read_text()
    runs = re.search(r"COMMAND still runs: PID (\d+)\n", reported)
    assert runs, reported
    os.kill(int(runs[1]), signal.SIGKILL)
    assert ended.returncode == 1
    last = f"process {runs[1]} runs a 32-bit program: only 64-bit programs can be traced"
    assert reported.splitlines()[-1] == f"ebpftrace: {last}"
