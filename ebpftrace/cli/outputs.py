# SPDX-License-Identifier: Apache-2.0
"""Additional files for a report of leaks, in the formats of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from ebpftrace.cli import options

if TYPE_CHECKING:
    from ebpftrace.model import Report

_FILES = (
    ("--junit", "FILE.xml", "JUnit XML: a leak is a failed test."),
    ("--sarif", "FILE.sarif", "SARIF 2.1.0, which forges and editors show in the source."),
    ("--annotations", "FILE", "GitHub's workflow commands: annotations of a pull request."),
    ("--pprof", "FILE.pb.gz", "the leaked bytes as a pprof profile."),
    ("--timeline", "FILE.json", "a timeline for ui.perfetto.dev."),
)


def files(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each format, and one for the directory of the sources."""
    command = click.option(
        "--repository",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="Where the sources are that --sarif and --annotations name; default: the git repository around "
        "the current directory.",
    )(command)
    for name, metavar, what in reversed(_FILES):
        command = options.file(name, metavar=metavar, purpose=f"Also write {what}")(command)
    return command


@dataclass(frozen=True)
class Outputs:
    """The files to write; None for those that were not requested."""

    junit: Optional[Path] = None
    sarif: Optional[Path] = None
    annotations: Optional[Path] = None
    pprof: Optional[Path] = None
    timeline: Optional[Path] = None
    repository: Optional[Path] = None

    @property
    def paths(self) -> dict[str, Optional[Path]]:
        """The files by the names of their options."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        del named["repository"]
        return named

    @property
    def any(self) -> bool:
        """Whether any file was requested."""
        return any(path is not None for path in self.paths.values())

    def write(self, reports: Sequence[Report]) -> None:
        """Write all files.  Raises CannotTrace."""
        if not self.any:
            return
        from ebpftrace.report import annotations, junit, pprof, sarif, timeline
        from ebpftrace.report.output import write
        from ebpftrace.report.places import Repository, repository_of

        repository = Repository(
            repository_of(".") if self.repository is None else str(self.repository.resolve())
        )
        if self.junit is not None:
            write(str(self.junit), junit.render(reports))
        if self.sarif is not None:
            write(str(self.sarif), sarif.render(reports, repository))
        if self.annotations is not None:
            write(str(self.annotations), annotations.render(reports, repository))
        if self.pprof is not None:
            write(str(self.pprof), pprof.render(reports))
        if self.timeline is not None:
            write(str(self.timeline), timeline.render(reports))
