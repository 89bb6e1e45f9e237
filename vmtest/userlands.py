# SPDX-License-Identifier: Apache-2.0
"""What a guest sees as its files: this machine's own, or another Debian with ebpftrace set up in it.

The second is made as its users would make it: a minimal system, a copy of the checkout, and
``scripts/setup.sh``, which brings that release's own bcc, LLVM and Python.
"""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmtest.packages import Unavailable, acquire_settings, archive
from vmtest.selection import TESTS

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = "/ebpftrace"
"""Where ebpftrace lies in a userland that was made."""
_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".vagrant", "__pycache__", ".*_cache", ".hypothesis", "bin", "build", "dist"
)
"""Of the checkout: what was built for this machine, by the names in .gitignore."""

_SET_UP = """
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t sysfs sys "$1/sys"
mount --rbind /dev "$1/dev"
# The network is reached as from here.
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -f $file ] || { touch "$1$file" && mount --bind $file "$1$file"; }
done
exec chroot "$1" sh -c "cd $2 && scripts/setup.sh test && $3"
"""

_COLLECT = ("-m", "pytest", "--collect-only", "-q", *TESTS)
_BUILD = "make -s -C tests/targets"
"""Programs and Python's bytecode are made beforehand: in a guest that takes twenty times as long."""


@dataclass(frozen=True)
class Files:
    """What a guest sees."""

    root: Path
    """The directory that is ``/`` there."""
    checkout: str
    """Where ebpftrace lies there."""
    python: str
    """The Python there that has what the tests need."""


@functools.cache
def this_machine() -> Files:
    """Return this machine's own files, ready for the tests.  Raises CalledProcessError."""
    for command in (_BUILD.split(), [sys.executable, *_COLLECT]):
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return Files(Path("/"), str(ROOT), sys.executable)


def made(suite: str, cache: Path, say: Callable[[str], None]) -> Files:
    """Return the files of a release of Debian with this checkout; the release is downloaded once.

    Raises Unavailable.
    """
    root = cache / "userlands" / suite
    log = cache / "userlands" / f"{suite}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    if not root.is_dir():
        say(f"{suite}: downloading it, log in {log}")
        unfinished = root.with_name(root.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        settings = [f"--aptopt={setting}" for setting in acquire_settings()]
        packages = "--include=ca-certificates,make,procps"
        run(
            ["mmdebstrap", "--variant=minbase", packages, *settings, suite, str(unfinished), archive("main")],
            log,
        )
        unfinished.rename(root)
    say(f"{suite}: setting up ebpftrace in it, log in {log}")
    copy_checkout(root)
    python = f"{CHECKOUT}/.venv/bin/python"
    last = f"{_BUILD} && {shlex.join([python, *_COLLECT])}"
    run(["unshare", "--mount", "sh", "-euc", _SET_UP, "sh", str(root), CHECKOUT, last], log)
    return Files(root, CHECKOUT, python)


def copy_checkout(root: Path) -> Path:
    """Put a copy of this checkout below ``root`` in place of an older one, of which the venv stays."""
    checkout = root / CHECKOUT.lstrip("/")
    checkout.mkdir(exist_ok=True)
    for old in checkout.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=_LEFT_OUT, dirs_exist_ok=True)
    return checkout


def run(command: list[str], log: Path) -> None:
    """Run a command, its output going to the end of a log.  Raises Unavailable where it fails."""
    try:
        with log.open("ab") as output:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True)
    except FileNotFoundError as error:
        raise Unavailable(f"{error.filename} is missing: run scripts/setup.sh kernels") from error
    except subprocess.CalledProcessError as error:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(f"{command[0]} failed ({last}), log in {log}") from error
