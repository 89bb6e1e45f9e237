# SPDX-License-Identifier: Apache-2.0
"""Targets that a test builds itself: one source, several compilers and ways to link."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import TARGETS


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
