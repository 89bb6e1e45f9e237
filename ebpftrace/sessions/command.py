# SPDX-License-Identifier: Apache-2.0
"""Start a COMMAND that waits to execute its program until the tracer is attached."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.model import CommandEnd
from ebpftrace.procfs.target import Target, open_target, refuse_32_bit_file
from ebpftrace.text import escape

_NOT_STARTED = 127
"""What a shell reports for a command that can't be executed."""

_END_SECONDS = 5.0
"""How long to wait for the exit status of a process whose memory is gone."""
_POLL_SECONDS = 0.005


class Command:
    """A child process that executes ``arguments`` after ``go``; a context manager.

    The child outlives the tracer if it is still running when the trace ends: tracing is no reason
    to end a program.  Without ``go`` it ends at once.
    """

    def __init__(self, arguments: Sequence[str], on_end: Callable[[CommandEnd], None]) -> None:
        """Start the child; after a ``go``, ``on_end`` gets its state when the context ends.

        Raises CannotTrace if there is no such program, or it can't be traced.
        """
        self.program = _find(arguments[0])
        self._arguments = list(arguments)
        self._on_end = on_end
        self._runs = False
        self._code: Optional[int] = None
        self._is_lost = False
        """It has ended, and its status is not available."""
        go_read, self._go = os.pipe()
        self._failed, failed_write = os.pipe()
        # Until the child runs the COMMAND: a Ctrl-C would unwind our own Python frames in it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)
            os.close(self._failed)
            _execute(self.program, self._arguments, go_read, failed_write, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(go_read)
        os.close(failed_write)

    def go(self) -> None:
        """Let the child execute its program.  Raises CannotTrace where the kernel refuses."""
        try:
            os.write(self._go, b"g")
        except BrokenPipeError:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            raise  # __exit__ finds out why
        self._close_go()
        failure = os.read(self._failed, 16)  # ends at once: the pipe closes on exec
        if failure:
            raise CannotTrace(f"cannot execute {_shown(self._arguments[0])}: {os.strerror(int(failure))}")
        self._runs = True

    def __enter__(self) -> Command:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: object) -> None:
        """If the trace failed because a signal ended the child, raise KeyboardInterrupt or CannotTrace."""
        cause = self._end_before_go() if kind is not None and self._go >= 0 else None
        self._close_go()
        os.close(self._failed)
        if cause is not None:
            raise cause from None
        if self._runs:
            self._on_end(self.end())

    def end(self, has_ended: bool = False) -> CommandEnd:
        """Return the state of the child; if it ``has_ended``, wait for its exit status."""
        argv = tuple(self._arguments)
        code = self._exit_code()
        until = time.monotonic() + _END_SECONDS
        while has_ended and code is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            code = self._exit_code()
        if code is None:
            return CommandEnd(argv, self.pid, runs=True)
        if self._is_lost:
            return CommandEnd(argv, self.pid)
        if code < 0:
            return CommandEnd(argv, self.pid, signal=-code)
        return CommandEnd(argv, self.pid, exit_status=code)

    def _end_before_go(self) -> Optional[BaseException]:
        """Return the exception for the signal that ended the waiting child; a terminal sends it to both."""
        code = self._exit_code()
        if code is None:
            return None
        if code == -signal.SIGINT:
            return KeyboardInterrupt()
        return CannotTrace(f"{_killed(-code) if code else 'COMMAND ended'} before it began")

    def _exit_code(self) -> Optional[int]:
        """The child's exit status, negative for a signal; None while it runs, 0 if it is not available."""
        if self._code is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # our parent made us ignore SIGCHLD
                self._is_lost = True
                self._code = 0
            else:
                self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def _close_go(self) -> None:
        if self._go >= 0:
            os.close(self._go)
            self._go = -1


def how_it_ended(end: CommandEnd) -> str:
    """Describe the state of a COMMAND in one line; empty if it has exited with 0."""
    if end.runs:
        return f"COMMAND still runs: PID {end.pid}"
    if end.signal is not None:
        return _killed(end.signal)
    return f"COMMAND exited with {end.exit_status}" if end.exit_status else ""


def _killed(number: int) -> str:
    return f"COMMAND was killed by signal {number} ({signal.strsignal(number) or 'unknown'})"


def hold_targets(
    held: ExitStack, pids: Iterable[int], arguments: Sequence[str], on_end: Callable[[CommandEnd], None]
) -> tuple[Optional[Command], list[Target]]:
    """Start the COMMAND with these arguments, if there are any, else open these processes.

    ``held`` is what closes them; ``on_end`` as for ``Command``.  Raises CannotTrace.
    """
    command = held.enter_context(Command(arguments, on_end)) if arguments else None
    wanted = [command.pid] if command else dict.fromkeys(pids)
    return command, [held.enter_context(open_target(pid)) for pid in wanted]


def _find(name: str) -> str:
    """Path of a program, found as a shell finds it.  Raises CannotTrace."""
    program = shutil.which(name)
    if program is not None:
        refuse_32_bit_file(program, _shown(name))
        return program
    place = name if "/" in name else shutil.which(name, os.F_OK)
    if place is None or not os.path.exists(place):  # noqa: PTH110 - Path.exists raises
        raise CannotTrace(f"there is no program {_shown(name)}", "give its path, or check the spelling")
    if os.path.isdir(place):  # noqa: PTH112
        raise CannotTrace(f"cannot execute {_shown(place)}: it is a directory")
    raise CannotTrace(
        f"cannot execute {_shown(place)}: it is not executable", "chmod +x, or give another path"
    )


def _shown(name: str) -> str:
    return f"'{escape(name)}'"


def _execute(program: str, arguments: list[str], go: int, failed: int, mask: Iterable[int]) -> None:
    """Wait for ``go``, then execute the program; never returns."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.read(go, 1):
            # Python ignores SIGPIPE; a program expects the default.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execv(program, arguments)
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(_NOT_STARTED)
