# SPDX-License-Identifier: Apache-2.0
"""Options for leaks that are known: suppressions and baselines, read before anything is traced."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from ebpftrace.cli import options
from ebpftrace.defaults import SUPPRESSIONS
from ebpftrace.errors import EbpftraceError

if TYPE_CHECKING:
    from ebpftrace.known.acceptance import Acceptance
    from ebpftrace.known.suppressions import Suppression
    from ebpftrace.model import Report


def suppressions(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--suppressions``."""
    purpose = f"Accept the leaks that its lines name; default: {SUPPRESSIONS} of the current directory."
    return _file("--suppressions", purpose, multiple=True)(command)


def baselines(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--baseline`` and ``--write-baseline``."""
    write = "Write the leaks of this run there, for --baseline of later ones."
    command = options.file("--write-baseline", purpose=write)(command)
    return _file("--baseline", "Accept the leaks that it has: only new or grown ones fail.")(command)


def _file(name: str, purpose: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    kind = click.Path(path_type=Path)
    return click.option(name, type=kind, metavar="FILE", help=purpose, **settings)


def load(suppressions: Sequence[Path], baseline: Optional[Path]) -> Acceptance:
    """Read the files.  Raises click.UsageError."""
    from ebpftrace.known.acceptance import Acceptance
    from ebpftrace.known.baseline import BadBaseline
    from ebpftrace.known.baseline import parse as parse_baseline

    files = list(suppressions) or [path for path in (Path(SUPPRESSIONS),) if path.is_file()]
    rules = [(rule, str(path)) for path in files for rule in _suppressions(path)]
    accepted = None
    if baseline is not None:
        try:
            accepted = parse_baseline(read(baseline))
        except BadBaseline as error:
            raise click.UsageError(
                f"{_shown(baseline)} is no baseline: {error}; --write-baseline makes one"
            ) from error
    return Acceptance(rules, accepted)


def _suppressions(path: Path) -> Sequence[Suppression]:
    from ebpftrace.known.suppressions import BadSuppression, parse

    try:
        return parse(read(path))
    except BadSuppression as error:
        raise click.UsageError(f"{_shown(path)}: {error}") from error


def read(path: Path, limit: Optional[int] = None) -> str:
    """The text of a file; - is standard input.  ``limit`` as of ``read_text``.  Raises click.UsageError."""
    from ebpftrace.user_files import MAX_OTHER, read_text

    try:
        return read_text(path, limit or MAX_OTHER, sys.stdin.buffer)
    except EbpftraceError as error:
        raise click.UsageError(str(error)) from error


def print_unused(acceptance: Acceptance) -> None:
    """Name the suppressions that matched nothing, on stderr."""
    from ebpftrace.text import escape

    for unused in acceptance.unused:
        rule = unused.suppression
        click.echo(
            f"ebpftrace: unused suppression: {escape(rule.text)} ({escape(unused.file)}:{rule.line})",
            err=True,
        )


def write_baseline(path: Optional[Path], reports: Sequence[Report]) -> None:
    """Write the leaks of all reports.  Raises CannotTrace."""
    if path is None:
        return
    from ebpftrace.known import baseline
    from ebpftrace.report.output import write

    write(str(path), baseline.render(finding for report in reports for finding in report.findings))


def _shown(path: Path) -> str:
    from ebpftrace.user_files import shown

    return shown(path)
