"""Attach programs that do nothing to the tracepoints of ``bpf/ledger.c``: the floor of every BPF tracer.

``python -m benchmarks.empty_probes`` says "attached" and stays until it is interrupted.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys

from ebpftrace.kernel.sources import bpf_dir, compiling

_PROBE = re.compile(r"^TRACEPOINT_PROBE\((\w+), (\w+)\)", re.MULTILINE)


def main() -> None:
    from bcc import BPF

    probes = _PROBE.findall((bpf_dir() / "ledger.c").read_text())
    text = "\n".join(f"TRACEPOINT_PROBE({group}, {name}) {{ return 0; }}" for group, name in probes)
    with compiling():
        bpf = BPF(text=text)
    sys.stderr.write("attached\n")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    bpf.cleanup()


if __name__ == "__main__":
    main()
