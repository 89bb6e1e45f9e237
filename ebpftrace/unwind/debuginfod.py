# SPDX-License-Identifier: Apache-2.0
"""Fetches debug information from a server, by build id, if the user asks for it.

This uses the system's client, ``debuginfod-find`` (elfutils; debuginfod-find(1)), which caches fetched files.
Build ids are sent to the servers in DEBUGINFOD_URLS, and only the worker reads the files that they send.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.unwind.debugfiles import DebugFile

SECONDS = 30
"""Limit for one file, during which no other stack is unwound."""
SECONDS_IN_ALL = 120
"""Limit for all files."""
_CLIENT = "debuginfod-find"
_URLS = "DEBUGINFOD_URLS"


class Debuginfod:
    """Fetches files; after a server has not answered in time, no more are fetched."""

    def __init__(self) -> None:
        """Raises ``CannotTrace`` if there is no client or no server."""
        client = shutil.which(_CLIENT)
        if client is None:
            raise CannotTrace(
                f"--debuginfod needs {_CLIENT}", "install debuginfod (Debian) or elfutils-debuginfod-client"
            )
        if not os.environ.get(_URLS, "").strip():
            raise CannotTrace(
                f"--debuginfod needs a server: {_URLS} is not set", "such as https://debuginfod.elfutils.org"
            )
        self._client = client
        self._left = float(SECONDS_IN_ALL)
        self.note = ""
        """Why nothing more is fetched, in one line; empty otherwise."""

    def find(self, build_id: bytes) -> Optional[DebugFile]:
        """The debug information of a file, or None; the caller closes the descriptor."""
        if self._left <= 0:
            return None
        seconds = min(SECONDS, self._left)
        command = [self._client, "debuginfo", build_id.hex()]
        began = time.monotonic()
        try:
            result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds)
        except subprocess.TimeoutExpired:
            self._left = 0
            self.note = f"--debuginfod: no answer in {seconds:.0f} s; nothing more is fetched"
            return None
        except OSError:
            return None
        finally:
            self._left -= time.monotonic() - began
        path = os.fsdecode(result.stdout.strip())
        if result.returncode or not path.startswith("/"):
            return None
        with suppress(OSError):
            return DebugFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), False)
        return None
