"""Targets that a test builds itself: one source, several compilers and ways to link."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import TARGETS, Lines, Target


@dataclass(frozen=True)
class Build:
    """One way to make a program of the same source."""

    name: str
    compiler: str
    flags: tuple[str, ...]


DYNAMIC = Build("dynamic", "cc", ())
STATIC = Build("static", "cc", ("-static",))
STATIC_PIE = Build("static-pie", "cc", ("-static-pie", "-fPIE"))
STRIPPED = Build("stripped", "cc", ("-static", "-s"))
MUSL = Build("musl", "musl-gcc", ())
MUSL_STATIC = Build("musl-static", "musl-gcc", ("-static",))


def compiled(directory: Path, source: str, build: Build = DYNAMIC) -> Path:
    binary = directory / f"{source}-{build.name}"
    if shutil.which(build.compiler) is None:
        pytest.skip(f"{build.compiler} is not installed")
    if not binary.exists():
        subprocess.run(
            [build.compiler, "-O2", "-pthread", *build.flags, "-o", binary, TARGETS / f"{source}.c"],
            check=True,
        )
    return binary


class Program(Target):
    """A target built by the test itself, since these need several builds of one source."""

    def __init__(self, binary: Path, *arguments: object, **popen: object) -> None:
        self.process = subprocess.Popen(
            [str(binary), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            **popen,  # type: ignore[call-overload]
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin = self.process.stdin
        self._lines = Lines(self.process.stdout)
        self.pid = self.process.pid
