# SPDX-License-Identifier: Apache-2.0
"""The tracer as a process of its own, for programs that use the package.

Tracing changes what belongs to a whole process: limits, signal handlers, the environment that a compiler
reads, the garbage collector.  A process of its own has all that for itself, may trace its caller, and is the
only one that needs privileges.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Optional, Union

from ebpftrace.errors import STATUS_INTERRUPTED, EbpftraceError, TracerFailed
from ebpftrace.installation import import_path

SUDO = ("sudo", "-n", "--")
"""Asks no question: where it would, it fails."""

_KILL_SECONDS = 10.0
"""How long a tracer may take to end that nobody waits for any more."""
_LONGEST_MESSAGE = 4096
_TAIL_LINES = 20


def program(sudo: bool = False) -> tuple[str, ...]:
    """The command line of this installation; nothing is imported from the working directory."""
    start = f"import sys; sys.path[:0] = {import_path()!r}; from ebpftrace.__main__ import main; main()"
    return (*(SUDO if sudo else ()), sys.executable, "-I", "-c", start)


class TracerProcess:
    """One run of the command line; a context manager, at whose end the process has ended."""

    def __init__(
        self, arguments: Sequence[str], *, sudo: bool = False, own_stdin: bool = True, pipe: bool = False
    ) -> None:
        """Start it.

        ``arguments``: the command and its options.  ``own_stdin``: the trace ends with ``stop``; otherwise a
        COMMAND has the standard streams of the caller, and the arguments say where the report goes.
        ``pipe``: ``lines`` gives what is printed as it comes; otherwise ``output`` has it at the end.
        Raises EbpftraceError where there is no sudo.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="ebpftrace-")
        self._error_file = Path(self._directory.name) / "error"
        self._output: Optional[IO[bytes]] = None
        stdin: Optional[int] = None
        stdout: Union[int, IO[bytes], None] = None
        stderr: Optional[int] = None
        embedded = ["--error-file", str(self._error_file)]
        if own_stdin:
            embedded.append("--until-eof")
            stdin = stderr = subprocess.PIPE
            stdout = subprocess.PIPE if pipe else tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
            self._output = None if pipe else stdout  # type: ignore[assignment]
        try:
            self._process = subprocess.Popen(
                [*program(sudo), *embedded, *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=own_stdin,  # a Ctrl-C on the terminal is for the caller
            )
        except OSError as error:
            self._directory.cleanup()
            raise TracerFailed(f"cannot start the tracer: {error.strerror}", "is sudo installed?") from None

    def __enter__(self) -> TracerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_input()
        for stream in (self._process.stdout, self._process.stderr, self._output):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(PermissionError):  # of sudo's; its input has ended, so it ends too
                self._process.kill()
                self._process.wait()
        self._directory.cleanup()

    def wait_until_attached(self) -> None:
        """Wait until all probes are live.  Raises EbpftraceError where nothing can be traced."""
        assert self._process.stderr is not None
        tail: list[str] = []
        for raw in iter(lambda: self._process.stderr.readline(_LONGEST_MESSAGE), b""):  # type: ignore[union-attr]
            line = raw.decode("utf-8", "replace").rstrip()
            if line == "attached":
                return
            tail = [*tail, line][-_TAIL_LINES:]
        self._process.wait()
        raise self._error(tail)

    def stop(self) -> None:
        """End the trace; the report follows."""
        self._end_input()

    def output(self) -> str:
        """Wait for the end; return all that was printed.  Raises EbpftraceError."""
        tail = self._rest_of_messages()
        self._process.wait()
        if self._process.returncode:
            raise self._error(tail)
        assert self._output is not None
        self._output.seek(0)
        return self._output.read().decode("utf-8", "surrogateescape")

    def wait(self) -> int:
        """Wait for the end of a tracer whose COMMAND has the caller's streams; return its status.

        Raises EbpftraceError where nothing could be traced.
        """
        status = self._process.wait()
        if self._error_file.exists() or status < 0:
            raise self._error([])
        return status

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects that are printed, one a line, as they come.  Raises EbpftraceError at the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)
        tail = self._rest_of_messages()
        if self._process.wait():
            raise self._error(tail)

    def _rest_of_messages(self) -> list[str]:
        if self._process.stderr is None:
            return []
        rest = self._process.stderr.read(1 << 20).decode("utf-8", "replace")
        return rest.splitlines()[-_TAIL_LINES:]

    def _end_input(self) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def _error(self, messages: Sequence[str]) -> EbpftraceError:
        """What went wrong: as the tracer wrote it, else by what it printed last, else by its status."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._error_file.read_text(encoding="utf-8"))
            return EbpftraceError(str(found["what"]), str(found["remedy"]))
        printed = [line for line in messages if line.strip() and line != "attached"]
        if printed:
            return TracerFailed(f"the tracer failed: {printed[-1]}")
        status = self._process.returncode
        if status == STATUS_INTERRUPTED or status == -signal.SIGINT:
            return TracerFailed("the tracer was interrupted")
        how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
        return TracerFailed(f"the tracer {how}")
