# SPDX-License-Identifier: Apache-2.0
"""The directory of the BPF sources, and the environment in which bcc compiles them.

bcc's own rules are in its ``src/cc/frontends/clang/loader.cc`` and ``kbuild_helper.cc``.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Generic, Optional, TypeVar

from ebpftrace.errors import CannotTrace
from ebpftrace.libc import LIBC
from ebpftrace.units import PAGE

T = TypeVar("T")

# linux/sched.h, linux/mount.h
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000

_FOREIGN_SETTINGS = ("ARCH", "BCC_LINUX_VERSION_CODE", "BCC_KERNEL_MODULES_SUFFIX")
"""Environment variables that bcc obeys and that other builds set: target machine, version, directory."""


def bpf_dir() -> Path:
    """Return the directory of the BPF sources; its ``include`` is the header tree.

    It is inside an installed package, and beside the package in a checkout.  Raises CannotTrace.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "bpf", package.parent / "bpf"):
        if (candidate / "include" / "linux" / "kconfig.h").is_file():
            return candidate
    raise CannotTrace("this installation of ebpftrace lacks its BPF sources", "install it again")


def compiler_flags() -> list[str]:
    """Return the compiler flags for this machine: the page size in bytes, and two that save time.

    bcc makes clang emit debug info, for types (BTF) that our programs do not need, and runs all passes again
    over code that clang has optimised already (``bpf_module.cc``, run_pass_manager).  Each takes a quarter of
    the compile time.
    """
    return [f"-DPAGE_SIZE={PAGE}", "-g0", "-Xclang", "-disable-llvm-passes"]


class Background(Generic[T]):
    """Work in a thread, which begins at once, or with ``begin``.

    Where memory runs out while a thread starts, CPython's ``Thread.start`` waits for ever.  What must be done
    even then has its thread beforehand.
    """

    def __init__(self, work: Optional[Callable[[], T]] = None) -> None:
        """Begin, if there is ``work``."""
        self._work = work
        self._begun = threading.Event()
        self._done: list[T] = []
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        if work is not None:
            self._begun.set()
        self._thread.start()

    def begin(self, work: Callable[[], T]) -> None:
        """Begin, once, what was not known before."""
        self._work = work
        self._begun.set()

    def wait(self) -> T:
        """Return what the work returned, or raise what it raised."""
        try:
            self._thread.join()
        finally:
            self._thread.join()  # also after an interrupt
        if self._error is not None:
            raise self._error
        return self._done[0]

    def _run(self) -> None:
        try:
            self._begun.wait()
            assert self._work is not None
            self._done.append(self._work())
        except BaseException as error:  # wait() raises it
            self._error = error


class CompilerThread(Background[T]):
    """Work that compiles with bcc, in a thread with its own working directory and mounts.

    bcc searches the current directory first for headers: in ``/usr/include``, or a directory with a
    ``linux/types.h``, it would read the wrong ones.  So the thread works in our header tree.  The environment
    variables belong to the whole process, and nothing else may depend on them meanwhile.

    bcc also reads all symbols of the kernel, to look for a helper that our programs do not call by its name
    (``b_frontend_action.cc``, DoMiscWorkAround).  That is a quarter of the compile time, so /proc/kallsyms is
    empty for the thread.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        """Begin."""

        def work_isolated() -> T:
            with _isolated_thread(), _environment():
                return work()

        super().__init__(work_isolated)


@contextlib.contextmanager
def _isolated_thread() -> Iterator[None]:
    """Give this thread its own working directory and, if permitted, an empty /proc/kallsyms.

    Seccomp profiles of containers refuse unshare(2): there the whole process is in our header tree meanwhile.
    A COMMAND was forked before and keeps its own directory.
    """
    if LIBC.unshare(_CLONE_FS):
        before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.chdir(bpf_dir())
            yield
        finally:
            os.fchdir(before)
            os.close(before)
        return
    _hide_symbols()
    os.chdir(bpf_dir())
    yield


def _hide_symbols() -> None:
    # Without permission to mount, compiling takes longer.  The mount is invisible to other processes.
    if not LIBC.unshare(_CLONE_NEWNS) and not LIBC.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None):
        LIBC.mount(b"/dev/null", b"/proc/kallsyms", None, _MS_BIND, None)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*_FOREIGN_SETTINGS, "BCC_KERNEL_SOURCE")}
    try:
        for name in _FOREIGN_SETTINGS:
            os.environ.pop(name, None)
        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_dir())
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
