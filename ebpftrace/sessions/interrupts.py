# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP end the trace early, and the report is still made; waiting for them and others.

Only in a process of our own: a program that uses the package keeps its signal handlers.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Optional

from ebpftrace import own_process

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Makes a file descriptor readable at the first of these signals; a context manager.

    The second signal has its default effect, so that an impatient user can end the program.
    """

    def __init__(self) -> None:
        self.received = False
        self._raises = False
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}

    def fileno(self) -> int:
        """Becomes readable when a signal comes."""
        return self._read

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS if own_process.is_claimed() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        os.close(self._read)
        os.close(self._write)

    def _receive(self, _: int, __: Optional[FrameType]) -> None:
        self.received = True
        os.write(self._write, b"!")
        self.release()
        if self._raises:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Leave this block by KeyboardInterrupt at a signal: what is begun in it is not worth finishing."""
        self._raises = True
        try:
            if self.received:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def release(self) -> None:
        """Let the signals have their former effect from now on."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


def readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Wait at most ``seconds`` until a descriptor is readable or at its end; return those that are."""
    # poll(2), since select(2) refuses descriptors from 1,024 on.
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in waiting.poll(max(0.0, seconds) * 1000)]
