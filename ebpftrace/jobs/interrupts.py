# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP end the trace early, and the report is still made."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any, Optional

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the first of these signals into a readable file descriptor; a context manager.

    The second one gets the default treatment, so that a user who is in a hurry is not kept.
    """

    def __init__(self) -> None:
        self.received = False
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}

    def fileno(self) -> int:
        """Becomes readable when a signal comes."""
        return self._read

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        os.close(self._read)
        os.close(self._write)

    def _receive(self, _: int, __: Optional[FrameType]) -> None:
        self.received = True
        os.write(self._write, b"!")
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
