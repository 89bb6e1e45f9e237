"""What several commands take in the same way: options and arguments, each worded in one place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import click

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_PID = click.IntRange(min=1)
_A_YEAR = 31_536_000
_SEPARATORS = re.compile(r"[,\s]+")

WHOLE = "Write here instead of stdout, whole or not at all."
LINE_BY_LINE = "Write here instead of stdout, line by line as they come."


def one_pid(purpose: str) -> _Decorator:
    """``-p PID``, which must be given."""
    return click.option("-p", "--pid", type=_PID, required=True, help=purpose)


def pids(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-p PID``, given as often as there are processes, or a list as strace's -p takes it."""
    return click.option(
        "-p",
        "--pid",
        "pids",
        metavar="PID[,PID]...",
        multiple=True,
        callback=_split,
        help='Process to trace; repeatable, or a list as "$(pidof NAME)" gives it.',
    )(command)


def command_line(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-- COMMAND ARGS...``: a program to start and trace."""
    return click.argument("command", nargs=-1, type=click.UNPROCESSED)(command)


class Seconds(click.FloatRange):
    """A finite number of seconds, up to a year."""

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> float:
        """As click asks for it; what is not even a number (NaN) is in no range."""
        seconds: float = super().convert(value, param, ctx)
        if not seconds <= _A_YEAR:
            self.fail(f"{value} is not a number of seconds up to a year ({_A_YEAR}).", param, ctx)
        return seconds


def duration(purpose: str, default: Optional[float] = None, *, zero: bool = False) -> _Decorator:
    """``-d SECONDS``; ``zero`` where no time at all has a meaning."""
    return click.option(
        "-d",
        "--duration",
        type=Seconds(min=0, min_open=not zero),
        default=default,
        show_default=default is not None,
        metavar="SECONDS",
        help=purpose,
    )


def file(*names: str, purpose: str, metavar: str = "FILE") -> _Decorator:
    """A file to write."""
    return click.option(
        *names, type=click.Path(path_type=Path, dir_okay=False), metavar=metavar, help=purpose
    )


def output(purpose: str) -> _Decorator:
    """``-o FILE``."""
    return file("-o", "--output", purpose=purpose)


def check_target(pids: Sequence[int], command: Sequence[str]) -> None:
    """There is something to trace, and it is said in one way.  Raises click.UsageError."""
    if pids and command:
        raise click.UsageError(f"-p PID and the command {command[0]!a} exclude each other: give one of them")
    if not pids and not command:
        raise click.UsageError("nothing to trace: give -p PID or -- COMMAND ARGS...")


def _split(context: click.Context, option: click.Parameter, given: Sequence[str]) -> tuple[int, ...]:
    words = [word for value in given for word in _SEPARATORS.split(value.strip(", \t\n"))]
    return tuple(dict.fromkeys(_PID(word, option, context) for word in words))
