# SPDX-License-Identifier: Apache-2.0
"""The one list of kernels that ebpftrace is tested on.  The README's table is checked against it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """A series of kernels as a suite of Debian has it; which version of it is newest, the archive tells."""

    name: str
    """What ``make test-kernels KERNEL=`` calls it."""
    suite: str
    series: str = ""
    """Such as "6.18"; empty takes the newest kernel of the suite."""
    is_short: bool = True
    """It belongs to the short set: what ``make test-kernels`` runs unless told otherwise."""
    userland: str = ""
    """The suite whose programs run on it, bcc above all; empty takes this machine's own."""


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
)


def chosen(wanted: str) -> list[Kernel]:
    """Return the kernels that ``short``, ``all``, ``userlands`` or names with commas between them mean.

    Raises ValueError with the names there are.
    """
    if wanted == "all":
        return list(KERNELS)
    if wanted == "short":
        return [kernel for kernel in KERNELS if kernel.is_short]
    if wanted == "userlands":
        return [kernel for kernel in KERNELS if kernel.userland]
    by_name = {kernel.name: kernel for kernel in KERNELS}
    names = [name for name in wanted.split(",") if name]
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        raise ValueError(
            f"no kernel {', '.join(unknown)!r}: there are short, all, userlands, {', '.join(by_name)}"
        )
    return [by_name[name] for name in names]


def support_table() -> str:
    """Return the table of tested kernels as the README has it."""
    rows = ["| kernel | from Debian | bcc from | tested |", "|---|---|---|---|"]
    for kernel in KERNELS:
        name = kernel.series or "newest there is"
        bcc = f"Debian {kernel.userland}" if kernel.userland else "the machine's own system"
        rows.append(
            f"| {name} | {kernel.suite} | {bcc} | {'short set' if kernel.is_short else 'on request'} |"
        )
    return "\n".join(rows)
