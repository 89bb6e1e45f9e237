"""The command line: one module per command, imported when it is called.

A command's module imports click and, at its top, nothing dear; what it needs it imports when it runs,
so that ``--help`` and shell completion answer at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any, Optional

import click

from ebpftrace import __version__
from ebpftrace.errors import CannotTrace

COMMANDS = ("mmap-leaks", "growth", "trace", "maps", "scan", "doctor")
"""In the order of the help; each is a function in the module of its name, with ``_`` for ``-``."""

STATUS_CANNOT_TRACE = 1
STATUS_INTERRUPTED = 130
STATUS_CLOSED_PIPE = 141
"""What a shell reports for a process ended by SIGINT and by SIGPIPE."""

_WHAT_RAN_OUT = {
    errno.ENOMEM: "out of memory: raise the memory limit it runs under (ulimit -v)",
    errno.EMFILE: "too many open files: raise the limit it runs under (ulimit -n)",
    errno.ENOSPC: "cannot write the output: no space left on device",
    errno.EDQUOT: "cannot write the output: disk quota exceeded",
}
"""Errors that are no bug, and their line."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for, and tells all errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:  # noqa: ARG002
        """Import and return one command, None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{name} is no command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every failure becomes one line and an exit status."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            raise click.exceptions.Exit(STATUS_INTERRUPTED) from None
        except Exception as error:
            raise click.exceptions.Exit(_tell(error)) from error
        return result


def _tell(error: Exception) -> int:
    """Say what went wrong in one line on stderr; return the exit status."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        _drop_output()
        return STATUS_CLOSED_PIPE
    code = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if code in _WHAT_RAN_OUT:
        _drop_output()
        click.echo(f"ebpftrace: {_WHAT_RAN_OUT[code]}", err=True)
        return STATUS_CANNOT_TRACE
    debugging = os.environ.get("EBPFTRACE_DEBUG") == "1"
    if debugging:
        import traceback

        traceback.print_exc()
    if isinstance(error, CannotTrace):
        click.echo(f"ebpftrace: {error}", err=True)
    else:
        text = f"{type(error).__name__}: {error}".encode("unicode_escape").decode("ascii")
        hint = "" if debugging else " with the output of EBPFTRACE_DEBUG=1"
        click.echo(f"ebpftrace: unexpected {text}: a bug, please report it{hint}", err=True)
    return STATUS_CANNOT_TRACE


def _drop_output() -> None:
    """Let Python flush what is left to nowhere when it ends: the reader has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ebpftrace", message="%(prog)s %(version)s")
def main() -> None:
    """Find the memory mappings whose owning thread exited without unmapping them.

    \b
    Examples:
      ebpftrace doctor                    can this machine trace?
      ebpftrace scan                      which process of this host looks as if it leaked?
      ebpftrace maps -p 31108             what is its address space made of?
      ebpftrace mmap-leaks -p 31108       trace a live process for 30 seconds
      ebpftrace growth -p 31108           what makes it grow, second by second
    """
