"""The command line's own manners: help, imports, and one line for every error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Optional

import click
import pytest
from click.testing import CliRunner, Result

from ebpftrace import __version__
from ebpftrace.cli import COMMANDS, LazyGroup, main
from ebpftrace.errors import CannotTrace

ROOT = Path(__file__).resolve().parents[2]
DEAR = ("bcc", "drgn", "rich", "elftools")


def ebpftrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ebpftrace", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_failing(error: BaseException, debug: bool = False) -> Result:
    """Run a command that raises ``error`` inside a group like ours."""

    @click.command()
    def failing() -> None:
        raise error

    class Group(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:  # noqa: ARG002
            return failing

    return CliRunner().invoke(
        Group(name="ebpftrace"), ["failing"], env={"EBPFTRACE_DEBUG": "1" if debug else None}
    )


def test_help_names_every_command() -> None:
    told = ebpftrace("--help")
    assert told.returncode == 0
    assert all(f"  {command} " in told.stdout for command in COMMANDS)


def test_version() -> None:
    assert ebpftrace("--version").stdout == f"ebpftrace {__version__}\n"


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_imports_nothing_dear(arguments: list[str]) -> None:
    script = (
        "import sys; from ebpftrace.cli import main\n"
        f"main({[*arguments, '--help']}, standalone_mode=False)\n"
        f"sys.exit(' '.join(name for name in {DEAR} if name in sys.modules))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout.startswith("Usage:")
    assert told.stderr.strip() == ""


@pytest.mark.parametrize("arguments", [["no-such-command"], ["doctor", "--no-such-option"]])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_cannot_trace_is_one_line() -> None:
    result = run_failing(CannotTrace("no process 7", "check the PID"))
    assert (result.exit_code, result.stderr) == (1, "ebpftrace: no process 7: check the PID\n")
    assert result.stdout == ""


def test_interrupt_is_quiet() -> None:
    result = run_failing(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "")


@pytest.mark.parametrize("text", ["odd", "two\nlines", "\x1b[31mred", "bad \udcff byte", ""])
def test_unexpected_error_is_one_printable_line(text: str) -> None:
    result = run_failing(ValueError(text))
    assert result.exit_code == 1
    line = result.stderr.removesuffix("\n")
    assert line.isprintable()
    assert line.startswith("ebpftrace: unexpected ValueError")
    assert "report" in line


@pytest.mark.parametrize("error", [ValueError("odd"), CannotTrace("no process 7")])
def test_debug_shows_the_traceback(error: Exception) -> None:
    assert "Traceback" not in run_failing(error).stderr
    told = run_failing(error, debug=True)
    assert "Traceback" in told.stderr
    assert told.exit_code == 1


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        told = subprocess.run(
            [sys.executable, "-m", "ebpftrace", "doctor"],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (told.returncode, told.stderr) == (141, b"")


@pytest.mark.parametrize("arguments", [["doctor"], ["maps", "-p", str(os.getpid())]], ids=lambda a: a[0])
def test_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as stdout:
        told = subprocess.run(
            [sys.executable, "-m", "ebpftrace", *arguments],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    line = b"ebpftrace: cannot write the output: no space left on device\n"
    assert (told.returncode, told.stderr) == (1, line)


def test_shell_completion_offers_the_commands() -> None:
    told = ebpftrace(_EBPFTRACE_COMPLETE="bash_complete", COMP_WORDS="ebpftrace ", COMP_CWORD="1")
    assert [line.split(",")[1] for line in told.stdout.splitlines()] == list(COMMANDS)
