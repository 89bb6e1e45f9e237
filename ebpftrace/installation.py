# SPDX-License-Identifier: Apache-2.0
"""How this Python found our package and its dependencies, and how it gets what it lacks."""

from __future__ import annotations

import sys
from pathlib import Path

DRGN = "drgn>=0.1,<0.4"
NUMPY = "numpy>=1.22"
"""What pyproject.toml asks for."""


def import_path() -> list[str]:
    """Return where a process of our own finds our package first, then all that we can import.

    Without the working directory: as root, nothing may come from there.
    """
    package = str(Path(__file__).resolve().parent.parent)
    return [package, *(entry for entry in sys.path if entry and entry != package)]


def install_command(requirement: str) -> str:
    """Return the command that installs a requirement for this Python."""
    return f"{sys.executable} -m pip install '{requirement}'"
