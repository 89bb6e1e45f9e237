# SPDX-License-Identifier: Apache-2.0
"""The program ``ebpftrace``, also as ``python -m ebpftrace``.

Everything else is imported inside ``main``, so that Ctrl-C during the imports also exits silently.
"""

from __future__ import annotations

import gc
import os
import sys

from ebpftrace import own_process
from ebpftrace.errors import STATUS_INTERRUPTED

_OBJECTS_BETWEEN_COLLECTIONS = 20_000


def main() -> None:
    """Run the command line; does not return."""
    own_process.claim()
    sys.unraisablehook = _end_if_interrupted
    # With Python's default of 700, the collector would run hundreds of times during the imports.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from ebpftrace.cli import main as command_line

        command_line(prog_name="ebpftrace")
    except KeyboardInterrupt:
        sys.exit(STATUS_INTERRUPTED)
    finally:
        import signal

        # The output is complete.  An interrupt during Python's shutdown would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_if_interrupted(raised: sys.UnraisableHookArgs) -> None:
    """Exit on a KeyboardInterrupt in a finalizer or weakref callback, which Python only prints."""
    if issubclass(raised.exc_type, KeyboardInterrupt):
        os._exit(STATUS_INTERRUPTED)
    sys.__unraisablehook__(raised)


if __name__ == "__main__":
    main()
