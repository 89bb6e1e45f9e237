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


KERNELS = (
    Kernel("5.10", "bullseye-security", "5.10"),
    Kernel("6.1", "bookworm-security", "6.1"),
    Kernel("6.12", "trixie-security", "6.12"),
    Kernel("6.18", "trixie-backports", "6.18", is_short=False),
    Kernel("7.0", "trixie-backports", "7.0", is_short=False),
    Kernel("newest", "trixie-backports"),
)


def chosen(wanted: str) -> list[Kernel]:
    """Return the kernels that ``short``, ``all`` or names with commas between them mean.

    Raises ValueError with the names there are.
    """
    if wanted == "all":
        return list(KERNELS)
    if wanted == "short":
        return [kernel for kernel in KERNELS if kernel.is_short]
    by_name = {kernel.name: kernel for kernel in KERNELS}
    names = [name for name in wanted.split(",") if name]
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        raise ValueError(f"no kernel {', '.join(unknown)!r}: there are short, all, {', '.join(by_name)}")
    return [by_name[name] for name in names]


def support_table() -> str:
    """Return the table of tested kernels as the README has it."""
    rows = ["| kernel | from | tested |", "|---|---|---|"]
    for kernel in KERNELS:
        name = kernel.series or f"{kernel.name} there is"
        rows.append(
            f"| {name} | Debian {kernel.suite} | {'short set' if kernel.is_short else 'on request'} |"
        )
    return "\n".join(rows)
