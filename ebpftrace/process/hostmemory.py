# SPDX-License-Identifier: Apache-2.0
"""The memory of the host: /proc/meminfo (proc(5))."""

from __future__ import annotations

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import read_small

_MEMINFO = "/proc/meminfo"
_KIB = 1024


def read_meminfo() -> dict[str, int]:
    """Figures by name: bytes where the kernel says kB, else plain numbers.  Raises ``CannotTrace``."""
    try:
        return parse_meminfo(read_small(_MEMINFO))
    except OSError as error:
        raise CannotTrace(f"cannot read {_MEMINFO}: {error.strerror}") from None


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
