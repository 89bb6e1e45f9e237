"""What fails when the programs are loaded or attached already: one line, and nothing of them stays."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

from harness import TRACER, Result, eventually, read_unless_gone
from test_harm import Started
from test_lifecycle import assert_gone, assert_one_line


def holds(tracer: Started, pid: int) -> bool:
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
            eventually(lambda: holds(tracer, sleeper.pid), "the tracer holds its target")
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
