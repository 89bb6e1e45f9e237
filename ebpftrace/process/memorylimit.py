# SPDX-License-Identifier: Apache-2.0
"""The memory that this process may take by its control group (the kernel's cgroup-v2.rst, memory.rst).

The kernel charges BPF tables to it, too (since Linux 5.11).  Who goes beyond is killed without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.text import size

_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Version 1 says 2**63 less a page where there is no limit."""
_OWN_BYTES = 84 << 20
"""What tracing takes beside the tables: our two processes, and of clang what it needs all the time."""

MORE_MEMORY = "allow it more memory (128 MiB is enough for a small target), or use --max-mappings"


class Limit(NamedTuple):
    """The tightest one that holds for this process."""

    limit: int
    """Bytes."""
    left: int
    """Bytes of it that are free or hold nothing but cached files."""


def memory_limit() -> Optional[Limit]:
    """Read it; None where there is none, or where control groups can't be seen."""
    found: list[Limit] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            found += _limits(_ROOT, path, "memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            names = ("total_inactive_file", "total_active_file")
            found += _limits(_ROOT / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", names)
    return min(found, key=lambda limit: limit.left, default=None)


def require_memory(table_bytes: int) -> None:
    """Make sure that tables of that size, and we, have room.  Raises CannotTrace."""
    limit = memory_limit()
    needed = table_bytes + _OWN_BYTES
    if limit is not None and limit.left < needed:
        raise CannotTrace(
            f"tracing needs about {size(needed)} of memory, and the control group of this process "
            f"has {size(limit.left)} left of its {size(limit.limit)}",
            MORE_MEMORY,
        )


def _limits(root: Path, path: str, limit_name: str, use_name: str, cached: tuple[str, ...]) -> list[Limit]:
    """Those of a group and of all above it, as far as they can be seen."""
    found = []
    groups = [root / path.strip("/"), *(root / path.strip("/")).parents]
    for group in groups[: groups.index(root) + 1]:
        limit, used = _read(group / limit_name).strip(), _read(group / use_name).strip()
        if not limit.isdigit() or not used.isdigit() or int(limit) >= _UNLIMITED:
            continue
        figures = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines())
        files = sum(int(figures.get(name, 0)) for name in cached)
        found.append(Limit(int(limit), max(0, int(limit) - int(used) + files)))
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="surrogateescape")
    except OSError:
        return ""
