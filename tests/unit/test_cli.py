# SPDX-License-Identifier: Apache-2.0
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
from reports import production

from ebpftrace import __version__
from ebpftrace.cli import COMMANDS, LazyGroup, main, options
from ebpftrace.cli.gate import Gate
from ebpftrace.cli.mmap_leaks import _Console, _Files
from ebpftrace.cli.outputs import Outputs
from ebpftrace.errors import CannotTrace
from ebpftrace.known.acceptance import Acceptance
from ebpftrace.model import Frame, UnjoinedBefore
from ebpftrace.report.view import View

ROOT = Path(__file__).resolve().parents[2]
EXPENSIVE = ("bcc", "drgn", "rich")


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
    outcome = ebpftrace("--help")
    assert outcome.returncode == 0
    assert all(f"  {command} " in outcome.stdout for command in COMMANDS)


def test_help_cuts_no_sentence() -> None:
    outcome = ebpftrace("--help").stdout
    assert "..." not in outcome.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("mmap-leak", "Did you mean mmap-leaks?"),
        ("groth", "Did you mean growth?"),
        ("xyz", "The commands are "),
    ],
)
def test_a_wrong_command_is_answered_with_a_right_one(wrong: str, meant: str) -> None:
    result = CliRunner().invoke(main, [wrong])
    assert result.exit_code == 2
    assert meant in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), ("30s", 30), ("5m", 300), ("5 min", 300), ("1h", 3600), ("2d", 172_800)],
)
def test_times_may_have_a_unit(text: str, seconds: float) -> None:
    assert options.Seconds(min=0).convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["5x", "m", "-5m", "400d", "1h30m", "nan", "", "5M"])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.Seconds(min=0).convert(text, None, None)


@pytest.mark.parametrize("command", ["mmap-leaks", "growth", "trace"])
def test_a_name_or_cgroup_without_a_process_is_one_line(command: str) -> None:
    for given, complaint in (
        (["--name", "no-such-program"], "no process is named no-such-program"),
        (["--cgroup", "no-such.service"], "no process is in a cgroup no-such.service"),
    ):
        result = CliRunner().invoke(main, [command, *given])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"ebpftrace: {complaint}: ")
        assert result.stderr.count("\n") == 1
        assert CliRunner().invoke(main, [command, *given, "--", "true"]).exit_code == 2


def test_version() -> None:
    assert ebpftrace("--version").stdout == f"ebpftrace {__version__}\n"


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_imports_nothing_expensive(arguments: list[str]) -> None:
    script = (
        "import sys; from ebpftrace.cli import main\n"
        f"main({[*arguments, '--help']}, standalone_mode=False)\n"
        f"sys.exit(' '.join(name for name in {EXPENSIVE} if name in sys.modules))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.stdout.startswith("Usage:")
    assert outcome.stderr.strip() == ""


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
    outcome = run_failing(error, debug=True)
    assert "Traceback" in outcome.stderr
    assert outcome.exit_code == 1


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        outcome = subprocess.run(
            [sys.executable, "-m", "ebpftrace", "doctor"],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (outcome.returncode, outcome.stderr) == (141, b"")


OWN = ("-p", str(os.getpid()))


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["maps", *OWN], ["--help"], ["--version"]], ids=lambda each: each[0]
)
def test_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as stdout:
        outcome = subprocess.run(
            [sys.executable, "-m", "ebpftrace", *arguments],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    line = b"ebpftrace: cannot write the output: no space left on device\n"
    assert (outcome.returncode, outcome.stderr) == (1, line)


def with_closed(streams: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run with these streams closed, in the shell's words."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "ebpftrace", *arguments],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["doctor"],
        ["scan"],
        ["maps", *OWN],
        ["growth", *OWN],
        ["trace", *OWN],
        ["mmap-leaks", *OWN],
        ["mmap-leaks", "-d", "0", *OWN],
    ],
    ids=lambda arguments: arguments[0],  # without the PID: all who share the tests must know them by one name
)
def test_closed_standard_output_is_one_line(arguments: list[str]) -> None:
    outcome = with_closed(">&-", *arguments)
    line = b"ebpftrace: cannot write the output: standard output is closed\n"
    assert (outcome.returncode, outcome.stderr) == (1, line)


def test_closed_streams_do_not_matter_to_a_file(tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert with_closed("<&- >&- 2>&-", "maps", *OWN, "-o", str(report)).returncode == 0
    assert b"python" in report.read_bytes()


@pytest.mark.parametrize(
    ("pid", "status"), [(str(os.getpid()), 0), ("999999999", 1)], ids=["alive", "no process"]
)
def test_closed_standard_error_breaks_nothing(pid: str, status: int) -> None:
    assert with_closed("2>&-", "maps", "-p", pid).returncode == status


def test_full_standard_error_breaks_nothing() -> None:
    assert with_closed(">/dev/full 2>&1", "--help").returncode == 1


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["scan"]], ids=" ".join)
@pytest.mark.parametrize(
    "module",
    ["ebpftrace.cli", "click", "ebpftrace.cli.streams", "ebpftrace.cli.options", "ebpftrace.sessions"],
)
def test_interrupt_while_modules_are_imported_is_quiet(module: str, arguments: list[str]) -> None:
    script = (
        "import importlib.abc, runpy, signal, sys\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            print('seen', flush=True)\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"sys.argv = ['ebpftrace', *{arguments}]\n"
        "runpy.run_module('ebpftrace', run_name='__main__')\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.stderr == ""
    assert outcome.returncode == (130 if outcome.stdout.startswith("seen") else 0)


def test_interrupt_in_a_callback_is_quiet() -> None:
    script = (
        "import signal, sys, weakref; import ebpftrace.cli; from ebpftrace.__main__ import main\n"
        "class Thing: pass\n"
        "def interrupted(**_):\n"
        "    thing = Thing()\n"
        "    weakref.finalize(thing, signal.raise_signal, signal.SIGINT)\n"
        "    del thing\n"
        "    print('went on')\n"
        "ebpftrace.cli.main = interrupted\n"
        "main()\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["mmap-leaks", *OWN, "--json", "--folded"], "--json and --folded exclude each other"),
        (["mmap-leaks", *OWN, "-d", "30", "--until-interrupt"], "-d TIME and --until-interrupt exclude"),
        (["growth", *OWN, "-d", "60", "--until-interrupt"], "-d TIME and --until-interrupt exclude"),
        (
            ["growth", *OWN, "--no-rss", "--sample", "3"],
            "--sample, --folded and --flamegraph have no meaning with",
        ),
        (
            ["growth", *OWN, "--no-rss", "--folded", "q"],
            "--sample, --folded and --flamegraph have no meaning with",
        ),
        (["growth", *OWN, "--rss", "-o", "q", "--folded", "q"], "--output and --folded would write to"),
        (["growth", *OWN, "--rss", "--sample", "0"], "0 is not in the range"),
        (["mmap-leaks", *OWN, "-d", "0", "-i", "1"], "-d 0 traces nothing"),
        (["mmap-leaks", *OWN, "-d", "soon"], "'soon' is not a valid number of seconds"),
        (["mmap-leaks", *OWN, "-o", "q", "--flamegraph", "./q"], "--output and --flamegraph would write to"),
        (
            ["mmap-leaks", *OWN, "--flamegraph", "a", "--speedscope", "b/../a"],
            "--flamegraph and --speedscope would write to the same file",
        ),
        (["maps", *OWN, "-o", ""], "empty file name"),
        (["maps", "-p", ""], "empty list of PIDs: is the program running?"),
        (["mmap-leaks", "-p", " \n"], "empty list of PIDs: is the program running?"),
        (["mmap-leaks", "-p", "1, abc"], "'abc' is not a PID"),
        (["trace", "-p", "0"], "'0' is not a PID"),
        (["growth", "-p", "-5"], "'-5' is not a PID"),
        (["growth", "-p", "9" * 9999], "is not a PID"),
        (["maps", "-p", "1 2"], "'1 2' is a list of PIDs: give one of them"),
    ],
)
def test_wrong_usage_says_what_is_wrong(arguments: list[str], why: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())


@pytest.mark.parametrize("given", ["1,2,1", " 1 2\n", "1,,2,"])
def test_pids_are_taken_as_pidof_prints_them(given: str) -> None:
    found: list[tuple[int, ...]] = []

    @click.command()
    @options.pids
    def listing(pids: tuple[int, ...]) -> None:
        found.append(pids)

    CliRunner().invoke(listing, ["-p", given])
    assert found == [(1, 2)]


@pytest.mark.parametrize("arguments", [[], ["-d", "5"], ["--until-interrupt"]], ids=" ".join)
def test_one_way_to_end_is_enough(arguments: list[str]) -> None:
    @click.command()
    @options.duration("How long.", default=5.0)
    @click.option("--until-interrupt", is_flag=True)
    @click.pass_context
    def watching(context: click.Context, duration: float, until_interrupt: bool) -> None:  # noqa: ARG001
        options.check_duration(context, until_interrupt)

    assert CliRunner().invoke(watching, arguments).exit_code == 0


def test_several_files_may_go_to_dev_null() -> None:
    options.check_files(output=Path("/dev/null"), flamegraph=Path("/dev/null"), speedscope=None)


def test_shell_completion_offers_the_commands() -> None:
    outcome = ebpftrace(_EBPFTRACE_COMPLETE="bash_complete", COMP_WORDS="ebpftrace ", COMP_CWORD="1")
    assert [line.split(",")[1] for line in outcome.stdout.splitlines()] == list(COMMANDS)


def test_pages_of_several_processes_are_separated() -> None:
    with subprocess.Popen(["sleep", "600"]) as one, subprocess.Popen(["sleep", "600"]) as other:
        try:
            outcome = ebpftrace("mmap-leaks", "-d", "0", "--min-age", "0", "-p", f"{one.pid},{other.pid}")
        finally:
            one.kill()
            other.kill()
    _, first, second = outcome.stdout.split("No leak seen; ")
    assert first.endswith("\n\n")
    assert not second.endswith("\n\n")


@pytest.mark.parametrize(
    ("several", "begins"), [(True, "app_server (PID 31108): before "), (False, "before ")]
)
def test_threads_unjoined_before_a_trace_are_reported_with_their_process(
    several: bool, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = _Files(None, None, None, None, None, Outputs())
    console = _Console(
        "text", View(), files, False, True, Gate(None, 3), Acceptance((), None), several=several
    )
    console.unjoined_before(UnjoinedBefore(production().target, 7, 70 << 20, ((Frame("minute_job"), 7),)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{begins}the trace: 7 threads have exited and are not joined so far, 70.0 MiB")
    assert "minute_job (7)" in line
    console.unjoined_before(UnjoinedBefore(production().target, 0, 0, ()))
    assert not capsys.readouterr().err
