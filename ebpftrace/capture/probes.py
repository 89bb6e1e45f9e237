# SPDX-License-Identifier: Apache-2.0
"""Where the programs for system calls are attached: at tracepoints, or at the calls' functions (fentry).

One program at any tracepoint of a system call makes the kernel take its slow path for each call of each
process (include/linux/entry-common.h, SYSCALL_WORK_SYSCALL_TRACEPOINT).  A program at the function of a call
costs nobody but those who make this call.  But on a preemptible kernel a task can be preempted inside such a
program, and the kernel then skips the same program for other tasks on that CPU (kernel/bpf/trampoline.c:
``__bpf_prog_enter_recur``); at tracepoints it disables preemption (before Linux 7).
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from ebpftrace.capture.btf import Btf
from ebpftrace.capture.cache import cached_or_made, kernel_identity
from ebpftrace.capture.installed import FENTRY, attach_function, load_tracing
from ebpftrace.capture.layout import Probes
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Check

_PREFIXES = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
"""SYSCALL_DEFINE (syscall_wrapper.h in arch/x86/include/asm and in arch/arm64/include/asm)."""
_CALLS = (
    "mmap", "munmap", "mremap", "brk", "shmat", "shmdt", "io_setup", "io_destroy", "exit_group", "execve",
    "execveat",
)  # fmt: skip
_TRIED = "munmap"
_DOES_NOTHING = bytes.fromhex("b7000000000000009500000000000000")
"""``r0 = 0; exit`` (Documentation/bpf/standardization/instruction-set.rst)."""

_SCHED_PREEMPT = Path("/sys/kernel/debug/sched/preempt")
_MODELS = (
    ("CONFIG_PREEMPT_NONE=y", "none"),
    ("CONFIG_PREEMPT_VOLUNTARY=y", "voluntary"),
    ("CONFIG_PREEMPT_LAZY=y", "lazy"),
    ("CONFIG_PREEMPT=y", "full"),
)
"""kernel/Kconfig.preempt: the choice that holds unless the command line says otherwise."""
_LOSES_NOTHING = ("none", "voluntary")


class Choice(NamedTuple):
    """Where the programs are attached."""

    functions: Optional[dict[str, int]]
    """The functions of the system calls: BTF numbers by the name of the call.  None: at tracepoints."""
    why: str


def choose(wanted: Probes) -> Choice:
    """Say where to attach.  Raises CannotTrace if fentry is wanted and impossible."""
    if wanted is Probes.TRACEPOINTS:
        return Choice(None, "as requested")
    if wanted is Probes.AUTO:
        model = preemption_of_this_kernel()
        if model not in _LOSES_NOTHING:
            return Choice(None, f"fentry could miss calls: {_said(model)}")
    try:
        functions = _functions()
        _try(functions)
    except (OSError, CannotTrace) as error:
        why = error.what if isinstance(error, CannotTrace) else os.strerror(error.errno or 0)
        if wanted is Probes.FENTRY:
            raise CannotTrace(
                f"this kernel refuses programs at functions ({why})", "leave out --probes fentry"
            ) from None
        return Choice(None, f"the kernel refuses programs at functions ({why})")
    return Choice(functions, "as requested" if wanted is Probes.FENTRY else "the kernel is not preemptible")


def check_probes() -> Check:
    """Say for ``doctor`` where the programs would be attached, and why."""
    choice = choose(Probes.AUTO)
    if choice.functions is not None:
        return Check("probes", True, f"fentry: calls that are not traced cost nothing ({choice.why})")
    return Check("probes", True, f"tracepoints: {choice.why}", required=False)


def preemption_of_this_kernel() -> Optional[str]:
    """Return the preemption model of the running kernel, as ``preemption`` does."""
    release = os.uname()
    return preemption(
        release.version,
        _text(_SCHED_PREEMPT),
        _text(Path("/proc/cmdline")),
        _text(Path(f"/boot/config-{release.release}")) or _compressed(Path("/proc/config.gz")),
    )


def preemption(version: str, switch: str, command_line: str, config: str) -> Optional[str]:
    """Return none, voluntary, lazy, full or rt, or None for unknown.

    Each argument is empty where it could not be read.  ``version`` is that of uname(2), ``switch`` the
    content of debugfs's sched/preempt.
    """
    if "PREEMPT_RT" in version:
        return "rt"
    if "PREEMPT" not in version:
        return "none"  # or voluntary, which differs only in where a task offers to be preempted
    if "PREEMPT_DYNAMIC" not in version:
        return "lazy" if "CONFIG_PREEMPT_LAZY=y" in config.splitlines() else "full"
    chosen = re.search(r"\((\w+)\)", switch)
    if chosen:
        return chosen.group(1)
    requested = re.findall(r"(?:^|\s)preempt=(\w+)", command_line)
    if requested:
        return str(requested[-1])
    lines = set(config.splitlines())
    return next((model for line, model in _MODELS if line in lines), None)


def _said(model: Optional[str]) -> str:
    if model is None:
        return "the kernel does not say whether it is preemptible (debugfs: sched/preempt)"
    return f"the kernel is preemptible ({model})"


def _try(functions: Mapping[str, int]) -> None:
    """Attach a program that does nothing, and detach it.  Raises OSError."""
    number = functions.get(_TRIED)
    if number is None:
        raise CannotTrace(f"its type information lacks the function of {_TRIED}")
    program = load_tracing("trial", _DOES_NOTHING, FENTRY, number)
    try:
        os.close(attach_function(program))
    finally:
        os.close(program)


def _functions() -> dict[str, int]:
    """Find the functions; takes a tenth of a second once for each kernel.  Raises CannotTrace."""
    prefix = _PREFIXES.get(platform.machine())
    if prefix is None:
        raise CannotTrace(f"{platform.machine()} machines can't be traced yet")
    found = cached_or_made(
        repr(("functions", prefix, _CALLS, kernel_identity())),
        lambda raw: {str(call): int(number) for call, number in json.loads(raw).items()},
        lambda: _found(prefix),
        lambda functions: json.dumps(functions).encode(),
    )
    return found or {}


def _found(prefix: str) -> dict[str, int]:
    numbers = Btf.of_running_kernel().function_ids([prefix + call for call in _CALLS])
    return {name[len(prefix) :]: number for name, number in numbers.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _compressed(path: Path) -> str:
    try:
        return gzip.decompress(path.read_bytes()).decode(errors="replace")
    except (OSError, EOFError):
        return ""
