# SPDX-License-Identifier: Apache-2.0
"""Which package has the debug information of a file: asked of the package manager of this host."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Optional

_SECONDS = 5.0
_SPECIAL = {"libc6": "libc6-dbg"}
"""Debian keeps this one among its ordinary packages, for valgrind and others."""


def debug_package(path: str, device: int, inode: int) -> Optional[str]:
    """The package that has debug information of the file at ``path``, None where nobody here knows.

    A file of another root directory, such as a container's, is not this host's: device and inode tell.
    """
    with suppress(OSError, ValueError):
        found = Path(path).stat()
        if (found.st_dev, found.st_ino) == (device, inode):
            return _of_debian(path) or _of_rpm(path)
    return None


def _of_debian(path: str) -> Optional[str]:
    # Where /lib is a link to /usr/lib, packages may still list their files below /lib.
    for listed in (path, path[len("/usr") :] if path.startswith("/usr/lib") else ""):
        told = _told(["dpkg-query", "--search", "--", listed]) if listed else None
        if told is not None:
            # "libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6"
            name = told.splitlines()[0].partition(": ")[0].partition(":")[0].partition(",")[0]
            return _SPECIAL.get(name, f"{name}-dbgsym")
    return None


def _of_rpm(path: str) -> Optional[str]:
    told = _told(["rpm", "--query", "--queryformat", "%{NAME}\n", "--file", path])
    return f"{told.splitlines()[0]}-debuginfo" if told else None


def _told(command: list[str]) -> Optional[str]:
    """What a command prints, None where it is not here, fails, or prints nothing."""
    with suppress(OSError, subprocess.SubprocessError, UnicodeError):
        told = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS
        )
        return told.stdout if told.returncode == 0 and told.stdout.strip() else None
    return None
