# SPDX-License-Identifier: Apache-2.0
"""Which requirements of tracing this machine meets: the checks of ``doctor``, also made before each trace.

Each check tries the thing itself (makes a ring buffer, imports bcc) and does not trust a version number.
"""

from __future__ import annotations

from collections.abc import Callable

from ebpftrace.capture.checks import libraries, machine, trial
from ebpftrace.capture.probes import check_probes
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Check

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
    check_probes,
    machine.check_kcmp,
    machine.check_target_memory,
    libraries.check_drgn,
    libraries.check_numpy,
)


def require_tracing() -> None:
    """Make sure that this machine can trace; mount tracefs if only that is missing.

    Raises CannotTrace with the first missing requirement and its remedy.
    """
    machine.mount_tracefs()
    for check in _REQUIRED:
        # ``capture.compiler`` checks bcc completely, and only if something must be compiled.
        found = libraries.check_bcc_found() if check is libraries.check_bcc else check()
        if not found.ok and found.required:
            raise CannotTrace(found.what, found.remedy)


def examine() -> list[Check]:
    """Run every check, and finally compile, load and attach a real program.

    Mounts tracefs if it is missing, as a trace would.
    """
    machine.mount_tracefs()
    found = [check() for check in (*_REQUIRED, *_OPTIONAL)]
    if all(check.ok for check in found if check.required):
        found.append(trial.check_trial())
    return found
