# SPDX-License-Identifier: Apache-2.0
"""Finds the source file and line in a repository at which forges and editors show a finding."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from ebpftrace.frames import culprit
from ebpftrace.model import Finding, Frame
from ebpftrace.wrappers import is_wrapper


class Place(NamedTuple):
    """A line of a source file."""

    file: str
    """Relative to the repository where it lies there, else as the debug information has it."""
    line: Optional[int]
    in_repository: bool


class Repository:
    """A directory with sources; programs may have been built from a copy of it elsewhere."""

    def __init__(self, root: str, exists: Callable[[str], bool] = os.path.isfile) -> None:
        self.root = root
        self._exists = exists
        self._known: dict[str, Optional[str]] = {}

    def relative(self, file: str) -> Optional[str]:
        """The file's path below the root; None where it does not lie there.

        Of a path from another machine, the longest end that exists here counts, but no bare name.
        """
        if file not in self._known:
            self._known[file] = self._relative(file)
        return self._known[file]

    def _relative(self, file: str) -> Optional[str]:
        path = posixpath.normpath(file)
        if path.startswith(self.root.rstrip("/") + "/"):
            path = posixpath.relpath(path, self.root)
        parts = [part for part in path.split("/") if part and part != ".."]
        least = 1 if not posixpath.isabs(path) else 2
        for first in range(len(parts) - least + 1):
            ending = "/".join(parts[first:])
            if self._exists(posixpath.join(self.root, ending)):
                return ending
            if not posixpath.isabs(path):
                break
        return None

    def place(self, finding: Finding) -> Optional[Place]:
        """The innermost line of a finding that is in the repository, else in the user's code."""
        frames = _shown_frames(finding)
        for frame in frames:
            below = self.relative(frame.file or "")
            if below is not None:
                return Place(below, frame.line, True)
        return next((Place(frame.file or "", frame.line, False) for frame in frames), None)

    def of(self, frame: Frame) -> Optional[Place]:
        """That of one frame; None where its source is not known."""
        if not frame.file:
            return None
        below = self.relative(frame.file)
        return Place(below or frame.file, frame.line, below is not None)


def repository_of(directory: str) -> str:
    """The directory with .git at or above ``directory``, else that itself."""
    start = Path(directory).resolve()
    return str(next((one for one in (start, *start.parents) if (one / ".git").exists()), start))


def _shown_frames(finding: Finding) -> Sequence[Frame]:
    """Return the frames of the user's code with a known source, the best first, the start routine last."""
    first = culprit(finding.stack)
    own = [frame for frame in finding.stack.frames if not is_wrapper(frame)]
    frames = [first, *own, finding.start_routine]
    return [frame for frame in frames if frame is not None and frame.file]
