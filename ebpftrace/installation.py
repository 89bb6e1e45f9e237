# SPDX-License-Identifier: Apache-2.0
"""The import path of this Python, and the command that installs a missing dependency for it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

DRGN = "drgn>=0.1,<0.4"
NUMPY = "numpy>=1.22"
"""The requirements in pyproject.toml."""


def import_path() -> list[str]:
    """Return the import path for a child process: this package first, then everything importable here.

    The working directory is left out, because a process of root must not import anything from there.
    """
    package = str(Path(__file__).resolve().parent.parent)
    return [package, *(entry for entry in sys.path if entry and entry != package)]


def install_command(requirement: str) -> str:
    """Return the command that installs a requirement for this Python."""
    return f"{sys.executable} -m pip install '{requirement}'"


def drgn_command() -> str:
    """Return how drgn is installed: PyPI has builds of it for x86-64 only."""
    if platform.machine() == "x86_64":
        return install_command(DRGN)
    return "apt-get install python3-drgn, or dnf install python3-drgn"
