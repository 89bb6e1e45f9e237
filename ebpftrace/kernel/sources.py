# SPDX-License-Identifier: Apache-2.0
"""Where the BPF sources lie, and the surroundings in which bcc compiles them.

bcc's own rules are in its ``src/cc/frontends/clang/loader.cc`` and ``kbuild_helper.cc``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Generic, Optional, TypeVar

from ebpftrace.errors import CannotTrace

T = TypeVar("T")

# linux/sched.h, linux/mount.h
_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000

_FOREIGN_SETTINGS = ("ARCH", "BCC_LINUX_VERSION_CODE", "BCC_KERNEL_MODULES_SUFFIX")
"""Environment variables of other builds that bcc would follow: target machine, version, directory."""


def bpf_dir() -> Path:
    """Return the directory of the BPF sources; its ``include`` is the header tree.

    An installed package carries it, a checkout has it beside the package.

    Raises:
        CannotTrace: the installation lacks it.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "bpf", package.parent / "bpf"):
        if (candidate / "include" / "linux" / "kconfig.h").is_file():
            return candidate
    raise CannotTrace("this installation of ebpftrace lacks its BPF sources", "install it again")


def compiler_flags() -> list[str]:
    """Return what every compilation needs on this machine: the size of a page, in bytes, and haste.

    bcc asks clang for debug info, to hand the kernel types (BTF) that nothing of ours needs, and has
    all passes run over what clang has optimised already (``bpf_module.cc``, run_pass_manager): each is
    a quarter of the time that compiling takes.
    """
    return [f"-DPAGE_SIZE={os.sysconf('SC_PAGE_SIZE')}", "-g0", "-Xclang", "-disable-llvm-passes"]


class Aside(Generic[T]):
    """Work in a thread; it begins at once."""

    def __init__(self, work: Callable[[], T]) -> None:
        """Begin."""
        self._work = work
        self._done: list[T] = []
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def wait(self) -> T:
        """Return what the work returned, or raise what it raised."""
        try:
            self._thread.join()
        finally:
            self._thread.join()  # also where the wait was interrupted
        if self._error is not None:
            raise self._error
        return self._done[0]

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:  # for whoever waits
            self._error = error


class Apart(Aside[T]):
    """Work that compiles with bcc, in a thread with surroundings of its own.

    bcc searches the current directory before all headers: in ``/usr/include``, or where somebody left a
    ``linux/types.h``, it would read the wrong ones.  The thread's is our header tree.  The environment
    belongs to the whole process: nothing else may depend on it meanwhile.

    And it reads all symbols of the kernel, to find out whether a helper exists that nothing of ours asks for
    by its name (``b_frontend_action.cc``, DoMiscWorkAround): a quarter of the time that compiling takes.  The
    thread sees none of them.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        """Begin."""

        def surrounded() -> T:
            with _own_surroundings(), _environment():
                return work()

        super().__init__(surrounded)


@contextlib.contextmanager
def _own_surroundings() -> Iterator[None]:
    """Give this thread a working directory of its own and, where we may, no symbols of the kernel to read.

    Containers' seccomp profiles refuse unshare(2): there the whole process is in our header tree meanwhile.
    A COMMAND was forked before, and keeps its own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_FS):
        before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.chdir(bpf_dir())
            yield
        finally:
            os.fchdir(before)
            os.close(before)
        return
    _hide_symbols(libc)
    os.chdir(bpf_dir())
    yield


def _hide_symbols(libc: ctypes.CDLL) -> None:
    # Not where a container may not mount: then compiling takes longer.  Nothing of it reaches other mounts.
    if not libc.unshare(_CLONE_NEWNS) and not libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None):
        libc.mount(b"/dev/null", b"/proc/kallsyms", None, _MS_BIND, None)


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
