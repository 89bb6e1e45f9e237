# SPDX-License-Identifier: Apache-2.0
"""One virtual machine: a kernel, files (read-only), one command.

What of QEMU is used was found by trial: without ``-cx16``, QEMU 7.2 corrupts Linux 6.12 at random.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Optional

from vmtest.initrd import initrd

_QEMU = "qemu-system-x86_64"
_VIRTIOFSD: dict[str, list[str]] = {
    "/usr/lib/qemu/virtiofsd": [],
    # An overlay refuses file systems that are announced as mounts of their own.
    "/usr/libexec/virtiofsd": ["--no-announce-submounts"],
}
"""Servers and their own options: the one QEMU had up to version 7, and the one that came after it."""
_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Runs a program that ends when we do, however we end."""
_MEMORY = "2G"
_ACCELERATION = {
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"],
    "kvm": ["-accel", "kvm", "-cpu", "host"],
}
# An oops ends the machine: what ran on after it would prove nothing.  A busy host is late with the
# ticks by which the kernel checks that its timer works, and panics over.
_KERNEL_ARGUMENTS = "console=ttyS0 oops=panic panic=-1 loglevel=4 mitigations=off no_timer_check"


class CannotBoot(Exception):
    """This machine lacks what a guest needs; the text says what."""


class Ending(Enum):
    """How a guest ended."""

    RETURNED = "returned"
    """The command came to its end."""
    DIED = "died"
    """The kernel crashed, or never came up."""
    TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Outcome:
    """What is left of a guest."""

    ending: Ending
    seconds: float
    status: Optional[int] = None
    """Exit status of the command; None unless it came to its end."""
    report: str = ""
    """What the command left in ``/run/report.xml``."""


def run(kernel: Path, root: Path, command: str, console: Path, seconds: float, acceleration: str) -> Outcome:
    """Boot an unpacked kernel, run a shell script in it as root, and write the console to a file.

    The script sees what is below ``root``; what it writes stays in the guest.  Raises CannotBoot.
    """
    images = [*kernel.glob("boot/vmlinuz-*"), *kernel.glob("usr/lib/modules/*/vmlinuz")]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vmtest-") as name:
        directory = Path(name)
        (directory / "initrd").write_bytes(initrd(kernel, command))
        result = directory / "result"
        with _files_shared(root, directory / "files"), console.open("wb") as log:
            machine = subprocess.Popen(
                _qemu(images[0], directory, acceleration),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                machine.wait(seconds)
                ending = Ending.DIED
            except subprocess.TimeoutExpired:
                ending = Ending.TIMED_OUT
            finally:
                machine.kill()
                machine.wait()
        status, _, report = (
            result.read_text(errors="replace").partition("\n") if result.exists() else ("", "", "")
        )
    if status.isdigit():
        return Outcome(Ending.RETURNED, time.monotonic() - started, int(status), report)
    return Outcome(ending, time.monotonic() - started)


def _qemu(image: Path, directory: Path, acceleration: str) -> list[str]:
    command = [
        *_WITH_US,
        _QEMU,
        "-M",
        "q35",
        "-smp",
        "2",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]
    command += [*_ACCELERATION[acceleration], "-m", _MEMORY]
    command += ["-kernel", str(image), "-initrd", str(directory / "initrd"), "-append", _KERNEL_ARGUMENTS]
    command += ["-serial", "stdio", "-serial", f"file:{directory / 'result'}"]
    command += [
        "-object",
        f"memory-backend-memfd,id=memory,size={_MEMORY},share=on",
        "-numa",
        "node,memdev=memory",
    ]
    command += ["-chardev", f"socket,id=files,path={directory / 'files'}"]
    return [*command, "-device", "vhost-user-fs-pci,chardev=files,tag=host"]


@contextlib.contextmanager
def _files_shared(root: Path, socket: Path) -> Iterator[None]:
    """Offer the files below a directory on a socket."""
    program = next((path for path in _VIRTIOFSD if Path(path).exists()), None)
    if program is None or not shutil.which(_QEMU):
        raise CannotBoot("QEMU for x86-64 or virtiofsd is missing: run scripts/setup.sh kernels")
    options = ["-o", f"source={root}", "-o", "sandbox=chroot", "-o", "cache=always"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*_WITH_US, program, f"--socket-path={socket}", *options, *_VIRTIOFSD[program]],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while not socket.exists():
                if server.poll() is not None:
                    log.seek(0)
                    raise CannotBoot(f"virtiofsd ended: {os.fsdecode(log.read())}")
                time.sleep(0.02)
            yield
        finally:
            server.kill()
            server.wait()
