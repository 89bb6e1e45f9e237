# SPDX-License-Identifier: Apache-2.0
"""The program ``ebpftrace``, also as ``python -m ebpftrace``.

Ctrl-C at any moment ends it without a word: the rest is imported where that holds already.
"""

from __future__ import annotations

import gc
import os
import sys

from ebpftrace.errors import STATUS_INTERRUPTED

_OBJECTS_BETWEEN_COLLECTIONS = 20_000


def main() -> None:
    """Run the command line; does not return."""
    sys.unraisablehook = _end_if_interrupted
    # Python's own 700 has it look for cycles hundreds of times among what modules are made of.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        from ebpftrace.cli import main as command_line

        command_line(prog_name="ebpftrace")
    except KeyboardInterrupt:
        sys.exit(STATUS_INTERRUPTED)
    finally:
        import signal

        # All is said, and Python only tidies up: it would print where it was.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_if_interrupted(raised: sys.UnraisableHookArgs) -> None:
    """Of a Ctrl-C that came in a callback (of a lock of the import system, say) Python only prints."""
    if issubclass(raised.exc_type, KeyboardInterrupt):
        os._exit(STATUS_INTERRUPTED)
    sys.__unraisablehook__(raised)


if __name__ == "__main__":
    main()
