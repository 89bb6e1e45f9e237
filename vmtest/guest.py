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

_VIRTIOFSD: dict[str, list[str]] = {
    "/usr/lib/qemu/virtiofsd": [],
    # An overlay refuses file systems that are announced as mounts of their own.
    "/usr/libexec/virtiofsd": ["--no-announce-submounts"],
}
"""Servers and their own options: the one QEMU had up to version 7, and the one that came after it."""
_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Runs a program that ends when we do, however we end."""
_MEMORY = "2G"


@dataclass(frozen=True)
class _Machine:
    """The options of QEMU for one kind of machine."""

    qemu: str
    board: str
    emulated: str
    """The CPU without KVM."""
    console: str
    result: tuple[str, ...]
    """Devices that the result goes through, to the character device "result"."""


_MACHINES = {
    "x86_64": _Machine(
        "qemu-system-x86_64", "q35", "max,-cx16", "ttyS0", ("-device", "isa-serial,chardev=result")
    ),
    # With the architected algorithm QEMU takes twice as long: it computes QARMA5 for each signed call.
    "aarch64": _Machine(
        "qemu-system-aarch64", "virt", "max,pauth-impdef=on", "ttyAMA0",
        ("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=result,name=result"),
    ),
}  # fmt: skip

# An oops ends the machine: what ran on after it would prove nothing.  A busy host is late with the
# ticks by which the kernel checks that its timer works, and panics over.
_KERNEL_ARGUMENTS = "oops=panic panic=-1 loglevel=4 mitigations=off no_timer_check"


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


def run(
    kernel: Path,
    root: Path,
    command: str,
    console: Path,
    seconds: float,
    acceleration: str,
    machine: str = "x86_64",
    cpu: str = "",
) -> Outcome:
    """Boot an unpacked kernel, run a shell script in it as root, and write the console to a file.

    The script sees what is below ``root``; what it writes stays in the guest.  ``machine`` is that of kernel
    and files, as uname(2) has it; another than this one is always emulated.  ``cpu`` is what an emulated CPU
    has or lacks besides, as QEMU takes it.  Raises CannotBoot.
    """
    model = _MACHINES[machine]
    if not shutil.which(model.qemu):
        purpose = "kernels" if machine == "x86_64" else "arm64"
        raise CannotBoot(f"{model.qemu} is missing: run scripts/setup.sh {purpose}")
    if machine != os.uname().machine:
        acceleration = "tcg"
    images = [*kernel.glob("boot/vmlinuz-*"), *kernel.glob("usr/lib/modules/*/vmlinuz")]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vmtest-") as name:
        directory = Path(name)
        (directory / "initrd").write_bytes(initrd(kernel, root, command))
        result = directory / "result"
        with _files_shared(root, directory / "files"), console.open("wb") as log:
            running = subprocess.Popen(
                _qemu(model, images[0], directory, acceleration, cpu),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                running.wait(seconds)
                ending = Ending.DIED
            except subprocess.TimeoutExpired:
                ending = Ending.TIMED_OUT
            finally:
                running.kill()
                running.wait()
        status, _, report = (
            result.read_text(errors="replace").partition("\n") if result.exists() else ("", "", "")
        )
    if status.isdigit():
        return Outcome(Ending.RETURNED, time.monotonic() - started, int(status), report)
    return Outcome(ending, time.monotonic() - started)


def _qemu(machine: _Machine, image: Path, directory: Path, acceleration: str, cpu: str) -> list[str]:
    emulated = f"{machine.emulated},{cpu}" if cpu else machine.emulated
    accelerated = ["kvm", "-cpu", "host"] if acceleration == "kvm" else ["tcg,thread=multi", "-cpu", emulated]
    return [
        *_WITH_US, machine.qemu, "-M", machine.board, "-smp", "2",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", *accelerated, "-m", _MEMORY, "-kernel", str(image), "-initrd", str(directory / "initrd"),
        "-append", f"console={machine.console} {_KERNEL_ARGUMENTS}", "-serial", "stdio",
        "-chardev", f"file,id=result,path={directory / 'result'}", *machine.result,
        "-object", f"memory-backend-memfd,id=memory,size={_MEMORY},share=on", "-numa", "node,memdev=memory",
        "-chardev", f"socket,id=files,path={directory / 'files'}",
        "-device", "vhost-user-fs-pci,chardev=files,tag=host",
    ]  # fmt: skip


@contextlib.contextmanager
def _files_shared(root: Path, socket: Path) -> Iterator[None]:
    """Offer the files below a directory on a socket."""
    program = next((path for path in _VIRTIOFSD if Path(path).exists()), None)
    if program is None:
        raise CannotBoot("virtiofsd is missing: run scripts/setup.sh kernels")
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
