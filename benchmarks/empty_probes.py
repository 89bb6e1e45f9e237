"""Attach programs that do nothing to the tracepoints of ``bpf/ledger.c``: the floor of every BPF tracer.

``python -m benchmarks.empty_probes`` says "attached" and stays until it is interrupted.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys

from ebpftrace.kernel.sources import Apart, bpf_dir

_PROBE = re.compile(r"^TRACEPOINT_PROBE\((\w+), (\w+)\)", re.MULTILINE)
_ELSEWHERE = re.compile(r"^#ifdef PID_NAMESPACE$.*?^#(?:else|endif)$", re.MULTILINE | re.DOTALL)
"""What only a tracer in a PID namespace of its own needs."""


def main() -> None:
    from bcc import BPF

    probes = probes_of((bpf_dir() / "ledger.c").read_text())
    text = "\n".join(f"TRACEPOINT_PROBE({group}, {name}) {{ return 0; }}" for group, name in probes)
    bpf = Apart(lambda: BPF(text=text)).wait()
    sys.stderr.write("attached\n")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    bpf.cleanup()


def probes_of(source: str) -> list[tuple[str, str]]:
    """The tracepoints that our programs are on, as (group, name)."""
    return _PROBE.findall(_ELSEWHERE.sub("", source))


if __name__ == "__main__":
    main()
