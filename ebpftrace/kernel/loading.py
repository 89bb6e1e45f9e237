# SPDX-License-Identifier: Apache-2.0
"""Our programs on their way into the kernel, in a thread: clang takes most of a second."""

from __future__ import annotations

from ebpftrace.kernel.descriptors import make_room
from ebpftrace.kernel.installed import Installed
from ebpftrace.kernel.loader import install_ledger, ledger_constants
from ebpftrace.kernel.sizing import Needs
from ebpftrace.kernel.sources import Aside


class Loading:
    """The ledger's programs are compiled, loaded and attached while the owner does something else.

    A context manager: they are detached at its end.  Until ``wait`` has returned, the environment is not the
    caller's (``sources.Apart``).
    """

    def __init__(self, needs: Needs) -> None:
        """Begin.  Raises CannotTrace where this machine can't be traced, OSError where files don't fit."""
        make_room()
        # Not in the thread: there it would compete with its owner for Python's lock.
        self.sizes, constants = ledger_constants(needs)
        self._installed = Aside(lambda: install_ledger(self.sizes, constants, needs.threads_only))

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            installed = self._installed.wait()
        except Exception:
            return
        installed.close()

    def wait(self) -> Installed:
        """Return the tables and programs, which stay ours.  Raises CannotTrace, OSError (EMFILE)."""
        return self._installed.wait()
