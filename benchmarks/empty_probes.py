# SPDX-License-Identifier: Apache-2.0
"""Attach programs that do nothing to the tracepoints of ``bpf/ledger.c``: the floor of every BPF tracer.

``python -m benchmarks.empty_probes`` says "attached" and stays until it is interrupted.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Collection

from ebpftrace.capture.btf import Btf
from ebpftrace.capture.sources import CompilerThread, bpf_dir
from ebpftrace.capture.tracepoints import has_tracepoint

_PROBE = re.compile(r"TRACEPOINT_PROBE\((\w+), (\w+)\)")
_CALL = re.compile(r"CALL_(ENTERS|RETURNS)\((\w+)\)")
"""A program at a system call, which is on its tracepoint unless the call's own function is attached to."""
_DIRECTIVE = re.compile(r"#(ifdef|ifndef|if|else|endif)\b\s*(.*)")
_DEFINED = re.compile(r"(!?)defined\((\w+)\)|(!?)\b([A-Z_]+)\b")


def main() -> None:
    from bcc import BPF

    probes = probes_of((bpf_dir() / "ledger.c").read_text(), defined_here())
    text = "\n".join(f"TRACEPOINT_PROBE({group}, {name}) {{ return 0; }}" for group, name in probes)
    bpf = CompilerThread(lambda: BPF(text=text)).wait()
    sys.stderr.write("attached\n")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    bpf.cleanup()


def defined_here() -> frozenset[str]:
    """The macros that decide which of our programs this kernel gets, without a PID namespace of our own."""
    names = {
        "HAS_SHARED_MEMORY": ("syscalls", "sys_exit_shmdt"),
        "HAS_PREPARE_EXEC": ("sched", "sched_prepare_exec"),
    }
    found = {name for name, tracepoint in names.items() if has_tracepoint(*tracepoint)}
    if Btf.of_running_kernel().has_name("trace_event_raw_sched_process_exit"):
        found.add("EXIT_HAS_MEMORY")
    return frozenset(found)


def probes_of(source: str, defined: Collection[str]) -> list[tuple[str, str]]:
    """The tracepoints that our programs are on, as (group, name), where these macros are ``defined``."""
    probes = []
    active = [True]
    for line in source.splitlines():
        directive = _DIRECTIVE.match(line)
        if directive is None:
            probe, call = _PROBE.match(line), _CALL.match(line)
            if probe is not None and all(active):
                probes.append((probe[1], probe[2]))
            elif call is not None and all(active):
                probes.append(("syscalls", f"sys_{'enter' if call[1] == 'ENTERS' else 'exit'}_{call[2]}"))
        elif directive[1] == "endif":
            active.pop()
        elif directive[1] == "else":
            active[-1] = not active[-1]
        elif directive[1] == "if":
            active.append(any(_holds(one, defined) for one in directive[2].split("||")))
        else:
            active.append((directive[2].strip() in defined) == (directive[1] == "ifdef"))
    return probes


def _holds(condition: str, defined: Collection[str]) -> bool:
    """Whether one operand of ``||`` holds: a macro, ``defined(MACRO)``, or the negation of one."""
    found = _DEFINED.search(condition)
    if found is None:
        return False
    negated, name = bool(found[1] or found[3]), found[2] or found[4]
    return (name in defined) != negated


if __name__ == "__main__":
    main()
