# SPDX-License-Identifier: Apache-2.0
"""The files of a guest of another machine than this one: Debian packages, unpacked and not executed here.

debootstrap's second stage would execute programs of that machine.  Nothing that the tests need does: what the
packages' scripts would have done is done here, and single programs (ldconfig, Python's compileall) are run by
QEMU's user mode, which needs no binfmt_misc as long as they start no other program.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from vmtest.kernels import Kernel
from vmtest.packages import Unavailable, acquire_settings, archive
from vmtest.userlands import CHECKOUT, Files, copy_checkout, run

_CROSS_COMPILER = "aarch64-linux-gnu-gcc"
_SIGNED = "-mbranch-protection=standard"
"""As the distribution builds its own programs: return addresses are signed."""
_USER_MODE = ("qemu-aarch64-static", "qemu-aarch64")
"""QEMU's user mode, statically linked: as Debian named it up to version 12, and since."""
_PYTHON = "/usr/bin/python3"

_PACKAGES = (
    "base-files", "base-passwd", "bash", "binutils", "bpftool", "busybox-static", "coreutils", "dash",
    "debianutils", "diffutils", "findutils", "g++", "gcc", "grep", "gzip", "hostname", "iproute2",
    "libc-bin", "libc6-dbg", "libc6-dev", "login", "make", "mawk", "mount", "passwd", "procps", "python3",
    "python3-bpfcc", "python3-click", "python3-drgn", "python3-hypothesis", "python3-jsonschema",
    "python3-numpy", "python3-pytest", "python3-pytest-timeout", "python3-rich",
    "python3-sortedcontainers", "python3-venv", "sed", "strace", "tar", "util-linux",
)  # fmt: skip
"""What the tests use, and what a system needs around it; Python's packages are the distribution's own."""

_BY_SCRIPTS = (
    ("bin/awk", "mawk"),
    ("bin/cc", "gcc"),
    ("bin/c++", "g++"),
    ("bin/sh", "dash"),
    # numpy's
    ("lib/aarch64-linux-gnu/libblas.so.3", "blas/libblas.so.3"),
    ("lib/aarch64-linux-gnu/liblapack.so.3", "lapack/liblapack.so.3"),
)
"""Links below /usr that the scripts of packages make: (name, to)."""

_IMPORTED = (
    "bcc", "click", "drgn", "hypothesis", "jsonschema", "multiprocessing", "numpy",
    "pytest", "pytest_timeout", "rich.console", "sortedcontainers", "xml.dom.minidom",
)  # fmt: skip
"""What the tests import of Python's own and other packages."""


def unpacked(kernel: Kernel, cache: Path, say: Callable[[str], None]) -> Files:
    """Return the files for a kernel of another machine, with this checkout; the release is downloaded once.

    Raises Unavailable.
    """
    name = f"{kernel.userland}-{kernel.architecture}"
    root = cache / "userlands" / name
    log = cache / "userlands" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    if not root.is_dir():
        say(f"{name}: downloading it, log in {log}")
        unfinished = root.with_name(root.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        settings = (*acquire_settings(), 'Acquire::Languages "none"', 'APT::Install-Recommends "false"')
        run(
            [
                "mmdebstrap", "--variant=extract", f"--architectures={kernel.architecture}",
                "--skip=check/qemu", f"--include={','.join(_PACKAGES)}",
                *(f"--aptopt={setting}" for setting in settings),
                kernel.userland, str(unfinished), archive("main"),
            ],
            log,
        )  # fmt: skip
        _finish(unfinished, log)
        unfinished.rename(root)
    checkout = copy_checkout(root)
    say(f"{name}: building the programs to be traced, log in {log}")
    run(["make", "-s", "-C", str(checkout / "tests/targets"), f"CC={_CROSS_COMPILER} {_SIGNED}"], log)
    packages = (f"{CHECKOUT}/{name}" for name in ("ebpftrace", "tests/kernel", "tests/support"))
    _run_there(root, log, _PYTHON, "-m", "compileall", "-q", *packages)
    return Files(root, CHECKOUT, _PYTHON)


def _finish(root: Path, log: Path) -> None:
    """Do what the packages' scripts would have done, as far as it is needed."""
    for table in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{table}.master", root / "etc" / table)
    for name, to in _BY_SCRIPTS:
        link = root / "usr" / name
        if not link.exists():
            link.symlink_to(to)
    for directory in ("proc", "sys", "dev", "run", "tmp", "root"):
        (root / directory).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    _run_there(root, log, "/usr/sbin/ldconfig")
    # Leaves Python's bytecode: in a guest that takes several times as long, in every one.
    _run_there(root, log, _PYTHON, "-c", f"import {', '.join(_IMPORTED)}")


def _run_there(root: Path, log: Path, *command: str) -> None:
    emulator = next((path for name in _USER_MODE if (path := shutil.which(name))), None)
    if emulator is None:
        raise Unavailable("QEMU's user mode is missing: run scripts/setup.sh arm64")
    inside = root / "usr/bin" / Path(emulator).name
    shutil.copy(emulator, inside)
    try:
        # Some machines keep Python from leaving bytecode.
        into = ["env", "--unset=PYTHONDONTWRITEBYTECODE", "chroot", str(root)]
        run([*into, f"/usr/bin/{inside.name}", *command], log)
    finally:
        inside.unlink()
