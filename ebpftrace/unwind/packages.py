# SPDX-License-Identifier: Apache-2.0
"""Finds the package with the debug information of a file, by the package manager of this host."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Optional

_SECONDS = 5.0
_SPECIAL = {"libc6": "libc6-dbg"}
"""Debian has this debug package among its ordinary ones, for valgrind and others."""


def debug_package(path: str, device: int, inode: int) -> Optional[str]:
    """The package with debug information for the file at ``path``; None if it is unknown here.

    ``device`` and ``inode`` show whether the file is this host's, or of another root such as a container's.
    """
    with suppress(OSError, ValueError):
        found = Path(path).stat()
        if (found.st_dev, found.st_ino) == (device, inode):
            return _of_debian(path) or _of_rpm(path)
    return None


def _of_debian(path: str) -> Optional[str]:
    # Even if /lib is a link to /usr/lib, packages may list their files below /lib.
    for listed in (path, path[len("/usr") :] if path.startswith("/usr/lib") else ""):
        output = _output_of(["dpkg-query", "--search", "--", listed]) if listed else None
        if output is not None:
            # "libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6"
            name = output.splitlines()[0].partition(": ")[0].partition(":")[0].partition(",")[0]
            return _SPECIAL.get(name, f"{name}-dbgsym")
    return None


def _of_rpm(path: str) -> Optional[str]:
    output = _output_of(["rpm", "--query", "--queryformat", "%{NAME}\n", "--file", path])
    return f"{output.splitlines()[0]}-debuginfo" if output else None


def _output_of(command: list[str]) -> Optional[str]:
    """The output of a command; None if it is not installed, fails, or prints nothing."""
    with suppress(OSError, subprocess.SubprocessError, UnicodeError):
        output = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS
        )
        return output.stdout if output.returncode == 0 and output.stdout.strip() else None
    return None
