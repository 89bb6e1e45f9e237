"""Where the BPF sources lie, and the surroundings in which bcc compiles them.

bcc's own rules are in its ``src/cc/frontends/clang/loader.cc`` and ``kbuild_helper.cc``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ebpftrace.errors import CannotTrace

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


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Have bcc compile with our header tree, whatever the caller's directory and environment.

    bcc searches the current directory before all headers: in ``/usr/include``, or where somebody
    left a ``linux/types.h``, it would read the wrong ones.  Directory and environment belong to the
    whole process, so nothing else may depend on them meanwhile.
    """
    tree = bpf_dir()
    before = {name: os.environ.get(name) for name in (*_FOREIGN_SETTINGS, "BCC_KERNEL_SOURCE")}
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _FOREIGN_SETTINGS:
            os.environ.pop(name, None)
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        os.chdir(tree)
        yield
    finally:
        os.fchdir(here)
        os.close(here)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
