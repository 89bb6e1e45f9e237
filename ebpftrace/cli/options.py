# SPDX-License-Identifier: Apache-2.0
"""Options and arguments that several commands share, so that each is worded in one place."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import click
from click.core import ParameterSource

from ebpftrace.cli import streams

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_A_YEAR = 31_536_000
_SEPARATORS = re.compile(r"[,\s]+")
_POSITIVE = re.compile(r"0*[1-9][0-9]{0,17}", re.ASCII)

WHOLE = "Write here instead of stdout, whole or not at all."
LINE_BY_LINE = "Write here instead of stdout, line by line as they come."


class Pid(click.types.IntParamType):
    """The number of a process."""

    name = "PID"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> int:
        """Convert for click; a list gets an error of its own, since pidof(1) prints one."""
        words = _words(value)
        if not words:
            self.fail("empty list of PIDs: is the program running?", param, ctx)
        if len(words) > 1:
            self.fail(f"{value!a} is a list of PIDs: give one of them.", param, ctx)
        if not _POSITIVE.fullmatch(words[0]):
            self.fail(f"{value!a} is not a PID.", param, ctx)
        return int(words[0])


_PID = Pid()


def one_pid(purpose: str) -> _Decorator:
    """``-p PID``, which must be given."""
    return click.option("-p", "--pid", type=_PID, required=True, help=purpose)


def pids(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-p PID``, which is repeatable and takes a list too, as in strace."""
    return click.option(
        "-p",
        "--pid",
        "pids",
        metavar="PID[,PID]...",
        multiple=True,
        callback=_split,
        help='Process to trace; repeatable, or a list as "$(pidof NAME)" gives it.',
    )(command)


def by_name(*names: str) -> _Decorator:
    """``--name NAME`` and ``--cgroup CGROUP``; ``names`` are the spellings of the option for a name."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--cgroup",
            "cgroups",
            metavar="CGROUP",
            multiple=True,
            help="All processes in a cgroup now: its directory, a systemd unit, or a container's id.",
        )(command)
        return click.option(
            *names,
            "names",
            metavar="NAME",
            multiple=True,
            help="All processes that have this name now, or run a program of this file name.",
        )(command)

    return decorate


def find_processes(
    pids: Sequence[int], names: Sequence[str], cgroups: Sequence[str], command: Sequence[str]
) -> tuple[int, ...]:
    """The PIDs for these options.  Raises ``click.UsageError``, or ``CannotTrace`` if there are none."""
    check_target([*pids, *names, *cgroups], command)
    found = list(pids)
    if names or cgroups:
        from ebpftrace.procfs.choose import processes_in_cgroup, processes_named

        for name in names:
            found += processes_named(name)
        for cgroup in cgroups:
            found += processes_in_cgroup(cgroup)
    return tuple(dict.fromkeys(found))


def command_line(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-- COMMAND ARGS...``: a program to start and trace."""
    return click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)


def follow_forks(purpose: str) -> _Decorator:
    """``-f``, ``--follow-forks``, ``--no-follow-forks``; None if none is given."""
    return click.option(
        "-f/",
        "--follow-forks/--no-follow-forks",
        "follow_forks",
        default=None,
        help=f"{purpose}; the default with COMMAND.  What a process executes is always traced.",
    )


def debuginfod(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--debuginfod``: fetch debug information."""
    return click.option(
        "--debuginfod",
        is_flag=True,
        help="Fetch missing debug information by build id from the servers in DEBUGINFOD_URLS.",
    )(command)


def probes(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--probes``: where system calls are traced."""
    return click.option(
        "--probes",
        type=click.Choice(["auto", "tracepoints", "fentry"]),
        default="auto",
        show_default=True,
        help="Trace system calls at tracepoints, which make each call of the host slower, or at their own "
        "functions (fentry); auto: fentry where it can't miss a call.",
    )(command)


_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|m|min|h|d)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class Seconds(click.FloatRange):
    """A time such as ``30``, ``30s``, ``5m``, ``1h`` or ``1d``, in seconds, up to a year."""

    name = "number of seconds"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> float:
        """Convert for click; NaN is in no range."""
        span = _SPAN.fullmatch(value) if isinstance(value, str) else None
        number = value if span is None else float(span[1]) * _SECONDS[span[2]]
        seconds: float = super().convert(number, param, ctx)
        if not seconds <= _A_YEAR:
            self.fail(f"{value} is not a number of seconds up to a year ({_A_YEAR}).", param, ctx)
        return seconds


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Size(click.types.IntParamType):
    """A number of bytes such as ``4096``, ``64MiB`` or ``4G``; all units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> int:
        """As click asks for it."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value} is not a size such as 64MiB or 4GiB.", param, ctx)
        return int(float(match[1]) * 1024 ** _POWER[match[2].upper()])


def duration(purpose: str, default: Optional[float] = None, *, zero: bool = False) -> _Decorator:
    """``-d TIME``; ``zero`` allows 0."""
    return click.option(
        "-d",
        "--duration",
        type=Seconds(min=0, min_open=not zero),
        default=default,
        show_default=default is not None,
        metavar="TIME",
        help=purpose,
    )


def top(purpose: str, default: int = 10) -> _Decorator:
    """``--top N``: the number of entries that a report shows."""
    return click.option(
        "--top",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="N",
        help=purpose,
    )


def min_bytes(purpose: str) -> _Decorator:
    """``--min-bytes BYTES``: smaller findings are left out."""
    return click.option("--min-bytes", type=click.IntRange(min=0), default=0, metavar="BYTES", help=purpose)


class _File(click.Path):
    """The name of a file to write."""

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        """As click asks for it."""
        if not value:
            self.fail("empty file name.", param, ctx)
        return super().convert(value, param, ctx)


def file(*names: str, purpose: str, metavar: str = "FILE", **settings: Any) -> _Decorator:
    """A file to write."""
    kind = _File(path_type=Path, dir_okay=False)
    return click.option(*names, type=kind, metavar=metavar, help=purpose, **settings)


def output(purpose: str) -> _Decorator:
    """``-o FILE``; without it, stdout must be open, which is checked before a trace of minutes."""
    return file("-o", "--output", purpose=purpose, callback=_output)


def _output(context: click.Context, option: click.Parameter, given: Optional[Path]) -> Optional[Path]:  # noqa: ARG001
    if given is None:
        streams.check_stdout()
    return given


def check_files(**files: Optional[Path]) -> None:
    """Check that no two of these options write to the same file.  Raises ``click.UsageError``."""
    written: dict[str, str] = {}
    for name, path in files.items():
        # Path.resolve fails for circular links; whether a file can be written is checked later.
        place = os.devnull if path is None else os.path.realpath(path)
        option = f"--{name.replace('_', '-')}"
        first = written.setdefault(place, option)
        if first != option and place != os.devnull:
            raise click.UsageError(f"{first} and {option} would write to the same file: name two files")


def check_duration(context: click.Context, until_interrupt: bool) -> None:
    """Check that only one of both determines the end of the trace.  Raises ``click.UsageError``."""
    if until_interrupt and is_given(context, "duration"):
        raise click.UsageError("-d TIME and --until-interrupt exclude each other: give one of them")


def is_given(context: click.Context, parameter: str) -> bool:
    """Whether the user gave the parameter, so that it is not the default."""
    return context.get_parameter_source(parameter) is not ParameterSource.DEFAULT


def check_target(targets: Sequence[object], command: Sequence[str]) -> None:
    """Check that either processes or a command are given.  Raises ``click.UsageError``."""
    if targets and command:
        from ebpftrace.text import escape

        program = escape(command[0])
        raise click.UsageError(f"-p PID and the command {program} exclude each other: give one of them")
    if not targets and not command:
        raise click.UsageError("nothing to trace: give -p PID or -- COMMAND ARGS...")


def _split(context: click.Context, option: click.Parameter, given: Sequence[str]) -> tuple[int, ...]:
    words = [word for value in given for word in _words(value) or [value]]
    return tuple(dict.fromkeys(_PID(word, option, context) for word in words))


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(text) if word]
