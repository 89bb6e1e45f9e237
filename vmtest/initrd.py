# SPDX-License-Identifier: Apache-2.0
"""The first file system of a guest: busybox, the modules that reach the host's files, a command."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable
from pathlib import Path

_BUSYBOX = "usr/bin/busybox"
_MODULES = (
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "fuse",
    "virtiofs",
    "overlay",
    "virtio_console",
)
"""Some kernels have some of them built in."""

_DIRECTORY, _FILE, _PROGRAM, _LINK = 0o40755, 0o100644, 0o100755, 0o120777

Entry = tuple[str, int, bytes]
"""Name, mode and content."""


def initrd(kernel: Path, root: Path, command: str) -> bytes:
    """Return the file system for an unpacked kernel; ``command`` is a shell script.

    busybox is the one of the files below ``root``, which are of the kernel's machine.
    """
    entries = [
        (name, _DIRECTORY, b"") for name in ("bin", "dev", "proc", "sys", "modules", "lower", "upper", "new")
    ]
    entries.append(("bin/busybox", _PROGRAM, _busybox(root).read_bytes()))
    entries.append(("bin/sh", _LINK, b"busybox"))
    names = []
    for module in _MODULES:
        for path in sorted(kernel.rglob(f"{module}.ko*"))[:1]:
            names.append(f"{module}.ko")
            entries.append((f"modules/{module}.ko", _FILE, _decompressed(path)))
    entries.append(("modules/list", _FILE, "\n".join(names).encode()))
    entries.append(("command", _FILE, command.encode()))
    entries.append(("init", _PROGRAM, Path(__file__).with_name("init.sh").read_bytes()))
    return gzip.compress(archive(entries), 1)


def archive(entries: Iterable[Entry]) -> bytes:
    """Return a cpio archive in the kernel's format (driver-api/early-userspace/buffer-format.rst)."""
    content = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        path = name.encode() + b"\0"
        head = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        content += b"070701" + b"".join(b"%08x" % field for field in head) + path
        content += b"\0" * (-len(content) % 4) + data
        content += b"\0" * (-len(content) % 4)
    return bytes(content)


def _busybox(root: Path) -> Path:
    """Of the userland; one that has none of its own (another Debian of this machine) takes this machine's."""
    own = root / _BUSYBOX
    return own if own.exists() else Path("/") / _BUSYBOX


def _decompressed(module: Path) -> bytes:
    content = module.read_bytes()
    return {".xz": lzma.decompress, ".gz": gzip.decompress}.get(module.suffix, bytes)(content)
