"""Start a COMMAND that waits to execute its program until the tracer is attached."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Sequence

from ebpftrace.errors import CannotTrace

_NOT_STARTED = 127
"""What a shell reports for a command that can't be executed."""


class Command:
    """A child process that executes ``arguments`` when told to ``go``; a context manager.

    The child outlives the tracer if it is still running when the trace ends: tracing is no reason
    to end a program.  One that was never told to go ends at once.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start the child.  Raises CannotTrace where there is no such program."""
        program = shutil.which(arguments[0])
        if program is None:
            raise CannotTrace(f"there is no program {arguments[0]!a}", "give its path, or check the spelling")
        self.program = program
        self._arguments = list(arguments)
        go_read, self._go = os.pipe()
        self._failed, failed_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self._failed)
            _execute(program, self._arguments, go_read, failed_write)
        os.close(go_read)
        os.close(failed_write)

    def go(self) -> None:
        """Let the child execute its program.  Raises CannotTrace where the kernel refuses."""
        os.write(self._go, b"g")
        self._close_go()
        failure = os.read(self._failed, 16)  # ends at once: the pipe closes on exec
        if failure:
            raise CannotTrace(f"cannot execute {self._arguments[0]!a}: {os.strerror(int(failure))}")

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_go()
        os.close(self._failed)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def _close_go(self) -> None:
        if self._go >= 0:
            os.close(self._go)
            self._go = -1


def _execute(program: str, arguments: list[str], go: int, failed: int) -> None:
    """Wait for the word, become the program; never returns."""
    try:
        if os.read(go, 1):
            # Python ignores SIGPIPE; a program expects the default.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execv(program, arguments)
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(_NOT_STARTED)
