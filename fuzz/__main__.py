# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz run`` searches, ``python -m fuzz replay`` repeats what it found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import click

from fuzz.reader import examine, limit_memory
from fuzz.readers import READERS
from fuzz.search import Tally

_FOLDER = Path("build/fuzz")
_BEGINS_SECONDS = 3
"""About what a search takes before its first input."""
_ROW = "{:16} {:>12} {:>8} {:>9} {:>7} {:>11}"
_reader = click.Choice(list(READERS))


@click.group()
def main() -> None:
    """Feed the readers of what a target controls with hostile bytes."""


@main.command()
@click.option("--minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, help="In all.")
@click.argument("readers", nargs=-1, type=_reader)
def run(minutes: float, readers: Sequence[str]) -> None:
    """Search in READERS (all), one after the other; fails where one does what it must not.

    Prints a row for each as it is done: paths are inputs that each reached new code, kept in build/fuzz for
    the next search.
    """
    names = readers or list(READERS)
    total = Tally()
    end = time.monotonic() + 60 * minutes
    click.echo(_ROW.format("reader", "inputs", "seconds", "accepted", "paths", "violations"))
    for done, name in enumerate(names):
        # What others took to begin is shared by those that are left.
        tally = _search(name, (end - time.monotonic()) / (len(names) - done) - _BEGINS_SECONDS)
        accepted = f"{tally.accepted / tally.inputs:.1%}" if tally.inputs else "?"
        paths = len(list((_FOLDER / "corpus" / name).iterdir()))
        click.echo(
            _ROW.format(name, f"{tally.inputs:,}", f"{tally.seconds:.0f}", accepted, paths, tally.violations)
        )
        total.inputs += tally.inputs
        total.seconds += tally.seconds
        total.violations += tally.violations
    click.echo(_ROW.format("all", f"{total.inputs:,}", f"{total.seconds:.0f}", "", "", total.violations))
    sys.exit(bool(total.violations))


@main.command()
@click.argument("reader", type=_reader)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def replay(reader: str, file: Path) -> None:
    """Give FILE to READER once more, within the same bounds."""
    limit_memory()
    click.echo("accepted" if examine(READERS[reader], file.read_bytes()) else "refused")


def _search(name: str, seconds: float) -> Tally:
    """In a process of its own: it may not survive, and measures the code from its import on."""
    command = [sys.executable, "-m", "fuzz.search", name, str(seconds), str(_FOLDER)]
    log = _FOLDER / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, check=False)
    found: Optional[Tally] = Tally(**json.loads(done.stdout)) if done.returncode == 0 else None
    if found is None or found.violations:
        click.echo(log.read_text(errors="replace")[-2000:], err=True)
    return found or Tally(violations=1)


if __name__ == "__main__":
    main()
