"""What our programs' perf events do besides carrying them: nothing.

bcc attaches a program to a tracepoint by a perf event on one CPU (src/cc/libbpf.c:
``bpf_attach_tracepoint``).  The program runs for the tracepoint on every CPU, whether that event is
enabled or not (kernel/trace/bpf_trace.c: ``perf_event_attach_bpf_prog``); an enabled one would also
record each call on its CPU, for nobody.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

_PERF_EVENT_IOC_DISABLE = 0x2401  # include/uapi/linux/perf_event.h


_TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def has_tracepoint(category: str, name: str) -> bool:
    """Whether this kernel has a tracepoint, as far as tracefs is mounted and can be read."""
    return any((tracefs / "events" / category / name / "id").exists() for tracefs in _TRACEFS)


def silence(bpf: Any) -> None:
    """Disable the perf events of a ``bcc.BPF`` object; its programs go on.  Raises OSError."""
    for fd in bpf.tracepoint_fds.values():
        fcntl.ioctl(fd, _PERF_EVENT_IOC_DISABLE, 0)
