# SPDX-License-Identifier: Apache-2.0
"""What this machine has of that which tracing needs: the checks behind ``doctor`` and every error line.

Each check looks at the thing itself (makes a ring buffer, imports bcc), not at a version that promises it.
"""

from __future__ import annotations

from collections.abc import Callable

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel.checks import libraries, machine, trial
from ebpftrace.kernel.checks.check import Check

_REQUIRED: tuple[Callable[[], Check], ...] = (
    machine.check_machine,
    machine.check_privileges,
    machine.check_lockdown,
    machine.check_pid_namespace,
    machine.check_time_namespace,
    machine.check_tracefs,
    machine.check_syscall_tracepoints,
    machine.check_ring_buffer,
    machine.check_perf_events,
    machine.check_btf,
    machine.check_memory,
    libraries.check_bcc,
    libraries.check_headers,
)
_OPTIONAL: tuple[Callable[[], Check], ...] = (
    libraries.check_llvm,
    machine.check_kcmp,
    machine.check_target_memory,
    libraries.check_drgn,
    libraries.check_numpy,
)


def require_tracing() -> None:
    """Make sure that this machine can trace, mounting tracefs where that is all it lacks.

    Raises:
        CannotTrace: with the first required thing that is missing, and its remedy.
    """
    machine.mount_tracefs()
    for check in _REQUIRED:
        # The rest of that is for who compiles (``kernel.compiler``).
        found = libraries.check_bcc_found() if check is libraries.check_bcc else check()
        if not found.ok and found.required:
            raise CannotTrace(found.what, found.remedy)


def examine() -> list[Check]:
    """Run every check, and at last a trial: compile, load and attach a real program.

    Mounts tracefs where that is missing, as a trace would.
    """
    machine.mount_tracefs()
    found = [check() for check in (*_REQUIRED, *_OPTIONAL)]
    if all(check.ok for check in found if check.required):
        found.append(trial.check_trial())
    return found
