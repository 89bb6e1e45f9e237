# SPDX-License-Identifier: Apache-2.0
"""ebpftrace: finds the mappings whose owning thread exited without unmapping them.

The names below are the Python API (``ebpftrace.api``), which is imported when one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ebpftrace.api import (
        Growth,
        GrowthCause,
        LeakTracer,
        Report,
        Syscall,
        address_space,
        check,
        find_leaks,
        growth,
        scan,
        syscalls,
    )
    from ebpftrace.errors import EbpftraceError

__version__ = "0.1.0"

__all__ = [
    "EbpftraceError",
    "Growth",
    "GrowthCause",
    "LeakTracer",
    "Report",
    "Syscall",
    "address_space",
    "check",
    "find_leaks",
    "growth",
    "scan",
    "syscalls",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ebpftrace import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
