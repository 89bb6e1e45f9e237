# SPDX-License-Identifier: Apache-2.0
"""Whether this process is the program ``ebpftrace``, which may change the state of the whole process.

If the package is used as a library, signal handlers, environment variables and mounts belong to the caller.
"""

from __future__ import annotations

_claimed = False


def claim() -> None:
    """Allow changes of the whole process; called only by the program's ``main``."""
    global _claimed
    _claimed = True


def is_claimed() -> bool:
    """Whether signal handlers, the environment and mounts may be changed."""
    return _claimed
