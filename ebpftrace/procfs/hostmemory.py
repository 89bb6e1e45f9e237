# SPDX-License-Identifier: Apache-2.0
"""The memory of the host (/proc/meminfo, proc(5)), and what the control group of this process leaves of it.

The kernel charges BPF maps to the control group since Linux 5.11, and kills a process that exceeds its limit
(the kernel's cgroup-v2.rst and memory.rst).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.access import read_small
from ebpftrace.text import size

_MEMINFO = "/proc/meminfo"
_KIB = 1024
_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Bytes; a larger limit is none.  Without a limit, version 1 reports 2**63 less a page."""
_OWN_BYTES = 84 << 20
"""Bytes that tracing takes besides the BPF maps: our two processes and the permanent part of clang."""

MORE_MEMORY = "allow it more memory (128 MiB is enough for a small target), or use --max-mappings"


def read_meminfo() -> dict[str, int]:
    """Figures by name, in bytes if the kernel prints kB, else plain numbers.  Raises ``CannotTrace``."""
    try:
        return parse_meminfo(read_small(_MEMINFO))
    except OSError as error:
        raise CannotTrace(f"cannot read {_MEMINFO}: {error.strerror}") from None


def huge_page_bytes() -> int:
    """The default size of a huge page (proc(5), meminfo: Hugepagesize).  Raises ``CannotTrace``."""
    return read_meminfo().get("Hugepagesize", 2 << 20)


def parse_meminfo(text: bytes) -> dict[str, int]:
    """Figures from the text of /proc/meminfo; lines of another form are left out."""
    figures = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        words = rest.split()
        if words and words[0].isdigit():
            scale = _KIB if words[1:] == [b"kB"] else 1
            figures[name.decode("ascii", "replace")] = int(words[0]) * scale
    return figures


class Limit(NamedTuple):
    """The memory limit of a control group, in bytes."""

    limit: int
    left: int
    """Bytes of the limit that are free or used only for cached files."""


def memory_limit() -> Optional[Limit]:
    """The tightest limit for this process; None if there is none, or control groups can't be read."""
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
    """Make sure that BPF maps of that size, and this process, fit into memory.  Raises ``CannotTrace``."""
    limit = memory_limit()
    needed = table_bytes + _OWN_BYTES
    if limit is not None and limit.left < needed:
        raise CannotTrace(
            f"tracing needs about {size(needed)} of memory, and the control group of this process "
            f"has {size(limit.left)} left of its {size(limit.limit)}",
            MORE_MEMORY,
        )


def _limits(root: Path, path: str, limit_name: str, use_name: str, cached: tuple[str, ...]) -> list[Limit]:
    """The limits of a control group and of all above it, as far as they can be read."""
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
