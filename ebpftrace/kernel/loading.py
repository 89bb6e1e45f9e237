"""Our programs on their way into the kernel, in a thread: clang takes most of a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ebpftrace.kernel.descriptors import make_room
from ebpftrace.kernel.loader import ledger_constants, load_ledger
from ebpftrace.kernel.sizing import Needs
from ebpftrace.kernel.sources import Apart
from ebpftrace.spare import give_back_memory


class Loading:
    """The ledger's programs are compiled, loaded and attached while the owner does something else.

    A context manager: they are detached at its end.  Until ``wait`` has returned, the environment is not the
    caller's (``sources.Apart``).
    """

    def __init__(self, needs: Needs) -> None:
        """Begin.  Raises CannotTrace where this machine can't be traced, OSError where files don't fit."""
        make_room()
        # Not in the thread: there it would compete with its owner for Python's lock, which clang needs not.
        self.sizes, constants = ledger_constants(needs)
        self._loaded = Apart(lambda: _load(constants))

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            bpf = self._loaded.wait()
        except Exception:
            return
        bpf.cleanup()

    def wait(self) -> Any:
        """Return the ``bcc.BPF`` object, which stays ours.  Raises CannotTrace."""
        return self._loaded.wait()


def _load(constants: Mapping[str, int]) -> Any:
    try:
        return load_ledger(constants)
    finally:
        give_back_memory()  # 18 MiB that clang used
