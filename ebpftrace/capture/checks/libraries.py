# SPDX-License-Identifier: Apache-2.0
"""The libraries that tracing and unwinding stand on: one check each."""

from __future__ import annotations

import importlib
import importlib.util
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

from ebpftrace.capture.checks.machine import holds_tracefs
from ebpftrace.capture.sources import bpf_dir
from ebpftrace.capture.tracepoints import DEBUGFS_TRACEFS
from ebpftrace.errors import CannotTrace
from ebpftrace.installation import NUMPY, drgn_command, install_command
from ebpftrace.model import Check

_OLDEST_BCC = (0, 18)
_BCC_KNOWS_TRACEFS = (0, 26)
"""Older ones look for tracefs inside debugfs only."""

_BCC_PACKAGES = {
    "apt-get": "apt-get install python3-bpfcc",
    "dnf": "dnf install python3-bcc",
    "yum": "yum install python3-bcc",
    "zypper": "zypper install python3-bcc",
    "pacman": "pacman -S python-bcc",
    "apk": "apk add py3-bcc",
}
_NO_ROOM = re.compile("failed to map segment|cannot allocate memory", re.IGNORECASE)
"""What the dynamic linker says where RLIMIT_AS forbids it to map a library (glibc elf/dl-load.c)."""
_SYSTEM_PYTHON = "/usr/bin/python3"


def check_bcc_found() -> Check:
    """That there is a bcc, without loading it, which takes a while: programs may be compiled already."""
    if importlib.util.find_spec("bcc") is None:
        return _missing_bcc()
    return Check("bcc", True, "installed")


def check_bcc() -> Check:
    """The BPF Compiler Collection, which comes from the distribution and not from PyPI."""
    if importlib.util.find_spec("bcc") is None:
        return _missing_bcc()
    try:
        bcc = importlib.import_module("bcc")
    except Exception as error:  # its shared library may be missing or broken in any way
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        is_full = isinstance(error, MemoryError) or _NO_ROOM.search(str(error))
        if limit != resource.RLIM_INFINITY and is_full:
            return Check(
                "bcc",
                False,
                f"{limit >> 20} MiB of address space are too little for bcc",
                "raise the limit it runs under (ulimit -v)",
            )
        return Check("bcc", False, f"bcc cannot be imported ({_one_line(error)})", _bcc_command())
    if not hasattr(bcc, "BPF"):
        return Check(
            "bcc",
            False,
            "the bcc installed here is PyPI's project of that name, not the BPF Compiler Collection",
            f"pip uninstall bcc, then {_bcc_command()}",
        )
    text = str(getattr(bcc, "__version__", "unknown"))
    numbers = re.match(r"v?(\d+)\.(\d+)", text)
    version = (int(numbers.group(1)), int(numbers.group(2))) if numbers else _BCC_KNOWS_TRACEFS
    if version < _OLDEST_BCC:
        return Check("bcc", False, f"bcc {text} is too old", "install bcc 0.18 or later")
    if version < _BCC_KNOWS_TRACEFS and not holds_tracefs(DEBUGFS_TRACEFS):
        return Check(
            "bcc", False, f"bcc {text} needs debugfs mounted", "mount -t debugfs debugfs /sys/kernel/debug"
        )
    return Check("bcc", True, f"{text}, {Path(str(bcc.__file__)).parent}")


def _missing_bcc() -> Check:
    if sys.prefix != sys.base_prefix and _system_python_has_bcc():
        return Check(
            "bcc",
            False,
            f"{sys.executable} cannot see the bcc of {_SYSTEM_PYTHON}",
            f"make the venv with {_SYSTEM_PYTHON} -m venv --system-site-packages (make setup does)",
        )
    return Check(
        "bcc",
        False,
        "the BPF Compiler Collection (bcc) is not installed",
        f"{_bcc_command()} (not pip: PyPI's bcc is another project)",
    )


def _bcc_command() -> str:
    for manager, command in _BCC_PACKAGES.items():
        if shutil.which(manager):
            return command
    return "install your distribution's bcc package for Python 3"


def _system_python_has_bcc() -> bool:
    if not Path(_SYSTEM_PYTHON).exists():
        return False
    # From the root directory, since Python looks for modules where it is started.
    probe = [_SYSTEM_PYTHON, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('bcc') is None)"]
    return subprocess.run(probe, cwd="/", capture_output=True, check=False).returncode == 0


def check_llvm() -> Check:
    """The compiler inside bcc: a shared libLLVM, or one built into libbcc."""
    if "bcc" not in sys.modules:
        return Check("LLVM", False, "comes with bcc", required=False)
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    return Check("LLVM", True, llvm_version(maps) or "built into bcc", required=False)


def llvm_version(maps: str) -> Optional[str]:
    """Return the major version of the libLLVM in the text of ``/proc/PID/maps``, None without one.

    Debian puts it into the file's name or its directory's, by release; Fedora into the file's.
    """
    found = re.search(r"/(?:llvm-?(\d+)/\S*libLLVM|libLLVM-(\d+)|libLLVM\.so\.(\d+))", maps)
    return next(filter(None, found.groups())) if found else None


def check_headers() -> Check:
    """Kernel headers are not needed: the package carries the few definitions that bcc asks for."""
    try:
        return Check("headers", True, f"our own, {bpf_dir() / 'include'}")
    except CannotTrace as error:
        return Check("headers", False, error.what, error.remedy)


def check_drgn() -> Check:
    """drgn unwinds stacks of programs without frame pointers."""
    try:
        drgn = importlib.import_module("drgn")
    except Exception as error:  # a wheel for another libc or Python fails in its own ways
        return Check(
            "drgn",
            False,
            f"cannot be imported ({_one_line(error)}): stacks will be frame-pointer stacks, often wrong",
            drgn_command(),
            required=False,
        )
    version = str(getattr(drgn, "__version__", "unknown version"))
    if version.startswith("0.0."):
        version += ": stacks are complete, but without inlined functions and lines; 0.1 or later has them"
    return Check("drgn", True, version, required=False)


def check_numpy() -> Check:
    """numpy searches memory for what still refers to a thread or a mapping."""
    try:
        numpy = importlib.import_module("numpy")
    except Exception as error:
        return Check(
            "numpy",
            False,
            f"cannot be imported ({_one_line(error)}): handles and pointers are not searched, less is proved",
            install_command(NUMPY),
            required=False,
        )
    return Check("numpy", True, str(getattr(numpy, "__version__", "unknown version")), required=False)


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
