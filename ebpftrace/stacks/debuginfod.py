# SPDX-License-Identifier: Apache-2.0
"""Debug information from a server, by build id: only where the user asks for it.

By the system's client, ``debuginfod-find`` (elfutils; debuginfod-find(1)), which keeps what it has fetched.
A build id is sent to the servers that DEBUGINFOD_URLS names, and what they send is read by the worker alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.stacks.debugfiles import DebugFile

SECONDS = 30
"""For one file: meanwhile no other stack is unwound."""
SECONDS_IN_ALL = 120
_CLIENT = "debuginfod-find"
_URLS = "DEBUGINFOD_URLS"


class Debuginfod:
    """Fetches files; gives up for good when a server does not answer in time."""

    def __init__(self) -> None:
        """Raises CannotTrace where there is no client, or no server to ask."""
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
        """Why nothing more is fetched, in one line; empty while that is not so."""

    def find(self, build_id: bytes) -> Optional[DebugFile]:
        """The debug information of a file, None where there is none; the descriptor is the caller's."""
        if self._left <= 0:
            return None
        seconds = min(SECONDS, self._left)
        command = [self._client, "debuginfo", build_id.hex()]
        began = time.monotonic()
        try:
            told = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds)
        except subprocess.TimeoutExpired:
            self._left = 0
            self.note = f"--debuginfod: no answer in {seconds:.0f} s; nothing more is fetched"
            return None
        except OSError:
            return None
        finally:
            self._left -= time.monotonic() - began
        path = os.fsdecode(told.stdout.strip())
        if told.returncode or not path.startswith("/"):
            return None
        with suppress(OSError):
            return DebugFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), False)
        return None
