# SPDX-License-Identifier: Apache-2.0
"""The command line: one module per command, imported when it is called.

A command's module imports only click at its top, and what is heavy inside the command, so that ``--help``
and shell completion answer at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import click

from ebpftrace import __version__
from ebpftrace.cli import embedding, streams
from ebpftrace.errors import RAISE_LIMIT, STATUS_INTERRUPTED, EbpftraceError

COMMANDS = ("mmap-leaks", "report", "diff", "growth", "trace", "maps", "scan", "doctor")
"""In the order of the help; each is a function in the module of its name, with ``_`` for ``-``."""

STATUS_CANNOT_TRACE = 1
STATUS_CLOSED_PIPE = 141
"""What a shell reports for a process ended by SIGPIPE."""

_WHAT_RAN_OUT = {
    errno.ENOMEM: "out of memory: raise the memory limit it runs under (ulimit -v)",
    **{code: f"too many open files: {remedy}" for code, remedy in RAISE_LIMIT.items()},
    errno.EBADF: "cannot write the output: standard output is closed",
    errno.ENOSPC: "cannot write the output: no space left on device",
    errno.EDQUOT: "cannot write the output: disk quota exceeded",
}
"""Errors that are no bug, and their line."""


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for, and prints all errors in one way."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:  # noqa: ARG002
        """Import and return one command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{name} is no command")
        # The list of commands would cut it to one line.
        command.short_help = " ".join((command.help or "").partition("\n\n")[0].split())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[Optional[str], Optional[click.Command], list[str]]:
        """Find the command; if there is none of this name, suggest a similar one."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"The commands are {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!a}. {hint}")
        return super().resolve_command(ctx, args)

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """Parse the options of the program itself; --help and --version are handled here."""
        streams.hold()
        with _print_errors():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _print_errors():
            result = super().invoke(ctx)
            sys.stdout.flush()
        return result


@contextmanager
def _print_errors() -> Iterator[None]:
    """Make every failure one line and an exit status."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        raise click.exceptions.Exit(STATUS_INTERRUPTED) from None
    except Exception as error:
        raise click.exceptions.Exit(_print_error(error)) from error


def _print_error(error: Exception) -> int:
    """Say what went wrong in one line on stderr; return the exit status."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        streams.drop_stdout()
        return STATUS_CLOSED_PIPE
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if code in _WHAT_RAN_OUT and (code != errno.EBADF or streams.stdout_is_closed()):
        streams.drop_stdout()
        _print_line(_WHAT_RAN_OUT[code])
        return STATUS_CANNOT_TRACE
    debugging = os.environ.get("EBPFTRACE_DEBUG") == "1"
    if debugging:
        import traceback

        traceback.print_exc()
    if isinstance(error, EbpftraceError):
        if not embedding.note_error(error):
            _print_line(str(error))
    else:
        text = f"{type(error).__name__}: {error}".encode("unicode_escape").decode("ascii")
        hint = "" if debugging else " with the output of EBPFTRACE_DEBUG=1"
        _print_line(f"unexpected {text}: a bug, please report it{hint}")
    return STATUS_CANNOT_TRACE


def _print_line(line: str) -> None:
    try:
        click.echo(f"ebpftrace: {line}", err=True)
    except OSError:  # stderr may be as full as stdout
        streams.drop_stderr()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ebpftrace", message="%(prog)s %(version)s")
@embedding.options
def main(until_eof: bool, error_file: Optional[Path]) -> None:
    """Find the memory mappings whose owning thread exited without unmapping them.

    \b
    Examples:
      ebpftrace doctor                    can this machine trace?
      ebpftrace scan                      which process of this host leaks?
      ebpftrace maps -p 31108             what is its address space made of?
      ebpftrace mmap-leaks -p 31108       trace a live process for 30 seconds
      ebpftrace growth -p 31108           what makes it grow, second by second
    """
    embedding.begin(until_eof, error_file)
