# SPDX-License-Identifier: Apache-2.0
"""Load the ledger's programs in a thread, because clang takes most of a second."""

from __future__ import annotations

from ebpftrace.capture.installed import Installed
from ebpftrace.capture.layout import Probes
from ebpftrace.capture.loader import install_ledger, ledger_constants
from ebpftrace.capture.probes import choose
from ebpftrace.capture.sizing import Needs
from ebpftrace.capture.sources import Background
from ebpftrace.errors import CannotTrace
from ebpftrace.own_process import raise_file_limit


class Loading:
    """Compiles, loads and attaches the ledger's programs in the background.

    A context manager: at its end the programs are detached.  Until ``wait`` has returned, the environment of
    the process is changed (``sources.CompilerThread``).
    """

    def __init__(self, needs: Needs) -> None:
        """Begin.  Raises CannotTrace where this machine can't be traced, OSError (EMFILE)."""
        raise_file_limit()
        # Not in the thread, where it would compete with the caller for Python's lock.
        self.sizes, constants = ledger_constants(needs)
        self.constants = constants
        """The constants that the ledger's programs are compiled with."""
        self._installed = Background(lambda: self._install(needs))

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            installed = self._installed.wait()
        except Exception:
            return
        installed.close()

    def _install(self, needs: Needs) -> Installed:
        if needs.threads_only:
            return install_ledger(self.sizes, self.constants, threads_only=True)
        functions = choose(needs.probes).functions
        try:
            return install_ledger(self.sizes, self.constants, functions=functions)
        except CannotTrace:
            if functions is None or needs.probes is Probes.FENTRY:
                raise
        return install_ledger(self.sizes, self.constants)

    def wait(self) -> Installed:
        """Return the tables and programs, which this object closes.  Raises CannotTrace, OSError (EMFILE)."""
        return self._installed.wait()
