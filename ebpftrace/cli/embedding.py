# SPDX-License-Identifier: Apache-2.0
"""Hidden options for programs that run the command line as a child process (``tracer_process``).

A tracer that was started with sudo can't get signals from its caller.  So it ends the trace at the end of its
standard input, which also comes if the caller dies.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

import click

from ebpftrace.errors import EbpftraceError

_error_file: Optional[Path] = None


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--until-eof`` and ``--error-file``."""
    command = click.option("--error-file", type=click.Path(path_type=Path), hidden=True)(command)
    return click.option("--until-eof", is_flag=True, hidden=True)(command)


def begin(until_eof: bool, error_file: Optional[Path]) -> None:
    """Apply the options."""
    global _error_file
    _error_file = error_file
    if until_eof:
        import threading

        # A caller in the background of a shell ignores SIGINT, another may block it: both are inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_interrupt_at_eof, name="stdin", daemon=True).start()


def note_error(error: EbpftraceError) -> bool:
    """Write an error to the caller's file; False if there is none, or if it can't be written."""
    if _error_file is None:
        return False
    with suppress(OSError):
        _error_file.write_text(json.dumps({"what": error.what, "remedy": error.remedy}), encoding="utf-8")
        return True
    return False


def _interrupt_at_eof() -> None:
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGINT)
