# SPDX-License-Identifier: Apache-2.0
"""Warnings about the stacks of a report: what is missing, why, and which package of this host has it."""

from __future__ import annotations

import posixpath
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Optional

from ebpftrace.text import count, plural, shorten, size

_MAX_FILES = 10_000
"""Limit of files for one reason; a target may map any number."""
_MAX_PERF_MAPS = 10
"""Limit of processes in one report that have an unreadable perf map."""
_SHOWN_FILES = 3
_PATH_WIDTH = 80

_PACKAGE_SECONDS = 5.0
"""Limit of a question to the package manager."""
_DEBUG_PACKAGES = {"libc6": "libc6-dbg"}
"""Debian has this debug package among its ordinary ones, for valgrind and others."""


class Bare(NamedTuple):
    """A file without debug information."""

    path: str
    build_id: Optional[bytes]
    device: int
    inode: int


class StackWarnings:
    """The warnings of one report, which its resolvers collect."""

    def __init__(self) -> None:
        self._failed = 0
        self._unnamed: dict[str, dict[str, None]] = {}
        self._perf_maps: dict[int, str] = {}
        self._bare: Counter[Bare] = Counter()
        self._was_asked = False
        self._python = ""
        self._fetching = ""

    def stack_failed(self) -> None:
        """Count a copy without frames."""
        self._failed += 1

    def no_names(self, path: str, why: str) -> None:
        """Record that frames in a file have only module and offset."""
        files = self._unnamed.setdefault(why, {})
        if len(files) < _MAX_FILES:
            files[path] = None

    def bare(self, file: Bare, frames: int, was_asked: bool) -> None:
        """Count frames in a file that have only module and offset, because its debug information is missing.

        ``was_asked`` means that debuginfod has none either.
        """
        if file in self._bare or len(self._bare) < _MAX_FILES:
            self._bare[file] += frames
        self._was_asked = was_asked

    def python(self, version: str) -> None:
        """Record that frames of Python code can't be read in an interpreter of this version."""
        self._python = version

    def fetching(self, note: str) -> None:
        """Record why no more debug information is fetched; empty if it is."""
        self._fetching = note

    def perf_map(self, pid: int, note: str) -> None:
        """Record what the last reading of a process's perf map lacks; empty if nothing."""
        self._perf_maps.pop(pid, None)
        if note and len(self._perf_maps) < _MAX_PERF_MAPS:
            self._perf_maps[pid] = note

    def _without_debug_info(self) -> str:
        files = [file for file, _ in self._bare.most_common()]
        shown = ", ".join(map(_wanted, files[:_SHOWN_FILES]))
        more = len(files) - _SHOWN_FILES
        others = f" and {count(more)} more" if more > 0 else ""
        ways = "install it" if self._was_asked else "install it, or fetch it with --debuginfod"
        return f"functions without names for want of debug information: {shown}{others}; {ways}"

    def notes(self, dropped_bytes: int = 0) -> list[str]:
        """The warnings, one line each; ``dropped_bytes`` of copies were not unwound at all."""
        lines = [f"no function names in {_listed(files)}: {why}" for why, files in self._unnamed.items()]
        if self._bare:
            lines.append(self._without_debug_info())
        lines += filter(None, [self._fetching])
        if self._python:
            lines.append(
                f"Python code is not named: frames of Python {self._python} are not read; -X perf names it"
            )
        lines += self._perf_maps.values()
        if self._failed:
            lines.append(
                f"{plural(self._failed, 'stack copy', 'stack copies')} could not be unwound: damaged, or the "
                "files of its code are, or they crashed the unwinding worker or took it too long"
            )
        if dropped_bytes:
            lines.append(
                f"{size(dropped_bytes)} of stack copies dropped: they came faster than they can be unwound; "
                "their calls have the stack of others with the same signature, or none"
            )
        return lines


def _wanted(file: Bare) -> str:
    """A file, and the package or build id of its debug information."""
    package = debug_package(file.path, file.device, file.inode)
    has = package or ("no build id" if file.build_id is None else f"build id {file.build_id.hex()}")
    return f"{shorten(posixpath.basename(file.path), _PATH_WIDTH)} ({has})"


def _listed(files: Iterable[str]) -> str:
    paths = list(files)
    shown = ", ".join(shorten(path, _PATH_WIDTH) for path in paths[:_SHOWN_FILES])
    more = len(paths) - _SHOWN_FILES
    return f"{shown} and {count(more)} more" if more > 0 else shown


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
            return _DEBUG_PACKAGES.get(name, f"{name}-dbgsym")
    return None


def _of_rpm(path: str) -> Optional[str]:
    output = _output_of(["rpm", "--query", "--queryformat", "%{NAME}\n", "--file", path])
    return f"{output.splitlines()[0]}-debuginfo" if output else None


def _output_of(command: list[str]) -> Optional[str]:
    """The output of a command; None if it is not installed, fails, or prints nothing."""
    with suppress(OSError, subprocess.SubprocessError, UnicodeError):
        output = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_PACKAGE_SECONDS
        )
        return output.stdout if output.returncode == 0 and output.stdout.strip() else None
    return None
