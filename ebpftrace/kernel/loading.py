"""Our programs on their way into the kernel, in a thread: clang takes most of a second."""

from __future__ import annotations

import threading
from typing import Any, Optional

from ebpftrace.kernel.descriptors import make_room
from ebpftrace.kernel.layout import Sizes
from ebpftrace.kernel.loader import ledger_constants, load_ledger
from ebpftrace.spare import give_back_memory


class Loading:
    """The ledger's programs are compiled, loaded and attached while the owner does something else.

    A context manager: they are detached at its end.  Until ``wait`` has returned, the environment is not the
    caller's (``sources.compile_apart``).
    """

    def __init__(self, sizes: Sizes) -> None:
        """Begin.  Raises CannotTrace where this machine can't be traced, OSError where files don't fit."""
        self.sizes = sizes
        make_room()
        # Not in the thread: there it would compete with its owner for Python's lock, which clang needs not.
        self._constants = ledger_constants(sizes)
        self._bpf: Any = None
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def wait(self) -> Any:
        """Return the ``bcc.BPF`` object, which stays ours.  Raises CannotTrace."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._bpf

    def _run(self) -> None:
        try:
            self._bpf = load_ledger(self._constants)
        except BaseException as error:  # for whoever waits
            self._error = error
        give_back_memory()  # 18 MiB that clang used
