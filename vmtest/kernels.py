# SPDX-License-Identifier: Apache-2.0
"""The one list of kernels that ebpftrace is tested on.  The README's table is checked against it."""

from __future__ import annotations

from dataclasses import dataclass

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Kernel:
    """A kernel series in a Debian suite; the newest version of the series is taken from the archive."""

    name: str
    """What ``make test-kernels KERNEL=`` calls it."""
    suite: str
    series: str = ""
    """Such as "6.18"; empty takes the newest kernel of the suite."""
    is_short: bool = True
    """It belongs to the short set, which ``make test-kernels`` runs by default."""
    userland: str = ""
    """The suite that provides the programs on it, above all bcc; empty: those of this machine."""
    machine: str = "x86_64"
    """As uname(2) has it."""
    flavour: str = ""
    """Of the package, such as "arm64-16k" (pages of 16 KiB); empty takes the cloud kernel."""
    cpu: str = ""
    """What its emulated CPU has or lacks, besides what all have, such as "lpa2=off"."""

    @property
    def architecture(self) -> str:
        """Debian's name of the machine."""
        return _ARCHITECTURES[self.machine]

    @property
    def package_suffix(self) -> str:
        """How the names of its packages end, such as "cloud-amd64"."""
        return self.flavour or f"cloud-{self.architecture}"


KERNELS = (
    Kernel("5.10", "bullseye-security", "5.10"),
    Kernel("6.1", "bookworm-security", "6.1"),
    Kernel("6.12", "trixie-security", "6.12"),
    Kernel("6.18", "trixie-backports", "6.18", is_short=False),
    Kernel("7.2", "trixie-backports", "7.2", is_short=False),
    Kernel("newest", "trixie-backports"),
    # From the oldest bcc that works to the newest there is.
    Kernel("bullseye", "bullseye-security", "5.10", is_short=False, userland="bullseye"),
    Kernel("bookworm", "bookworm-security", "6.1", is_short=False, userland="bookworm"),
    Kernel("trixie", "trixie-security", "6.12", is_short=False, userland="trixie"),
    Kernel("forky", "trixie-backports", is_short=False, userland="forky"),
    Kernel("sid", "trixie-backports", is_short=False, userland="sid"),
    # trixie's drgn (0.0.31) unwinds but knows no names; forky's (0.3) does both.
    Kernel("arm64-6.1", "bookworm-security", "6.1", is_short=False, userland="trixie", machine="aarch64"),
    Kernel("arm64-6.12", "trixie-security", "6.12", is_short=False, userland="forky", machine="aarch64"),
    Kernel(
        "arm64-16k", "trixie-security", "6.12", is_short=False, userland="forky", machine="aarch64",
        flavour="arm64-16k",
    ),
    # QEMU's CPU has addresses of 52 bits, which most machines have not: then more bits sign return addresses.
    Kernel(
        "arm64-48bit", "trixie-security", "6.12", is_short=False, userland="forky", machine="aarch64",
        cpu="lpa2=off",
    ),
)  # fmt: skip


def chosen(wanted: str) -> list[Kernel]:
    """Return the kernels that names with commas between them mean: of kernels, or ``short``, ``all``,
    ``userlands``, ``arm64``.

    Raises ValueError with the names there are.
    """
    groups = {
        "short": [kernel for kernel in KERNELS if kernel.is_short],
        "all": list(KERNELS),
        "userlands": [kernel for kernel in KERNELS if kernel.userland and kernel.machine == "x86_64"],
        "arm64": [kernel for kernel in KERNELS if kernel.machine == "aarch64"],
        **{kernel.name: [kernel] for kernel in KERNELS},
    }
    names = [name for name in wanted.split(",") if name]
    unknown = [name for name in names if name not in groups]
    if unknown or not names:
        raise ValueError(f"no kernel {', '.join(unknown)!r}: there are {', '.join(groups)}")
    return list(dict.fromkeys(kernel for name in names for kernel in groups[name]))


def support_table() -> str:
    """Return the table of tested kernels as the README has it."""
    rows = ["| kernel | machine | from Debian | bcc from | tested |", "|---|---|---|---|---|"]
    for kernel in KERNELS:
        name = kernel.series or "newest there is"
        machine = f"{kernel.machine}, 16 KiB pages" if kernel.flavour.endswith("-16k") else kernel.machine
        machine += ", 48-bit addresses" if "lpa2=off" in kernel.cpu else ""
        bcc = f"Debian {kernel.userland}" if kernel.userland else "the machine's own system"
        tested = "short set" if kernel.is_short else "on request"
        rows.append(f"| {name} | {machine} | {kernel.suite} | {bcc} | {tested} |")
    return "\n".join(rows)
