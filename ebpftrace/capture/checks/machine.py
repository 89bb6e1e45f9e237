# SPDX-License-Identifier: Apache-2.0
"""One check for each requirement of the kernel and of the caller's privileges."""

from __future__ import annotations

import errno
import os
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Optional

from ebpftrace import own_process
from ebpftrace.capture.tracepoints import DEBUGFS_TRACEFS, TRACEFS
from ebpftrace.errors import CannotTrace
from ebpftrace.libc import syscall
from ebpftrace.model import Check
from ebpftrace.procfs.hostmemory import require_memory
from ebpftrace.procfs.namespaces import in_initial_user_namespace, own_pid_namespace
from ebpftrace.syscall_numbers import numbers
from ebpftrace.units import PAGE

# linux/capability.h
_CAP_DAC_READ_SEARCH = 2
_CAP_SYS_PTRACE = 19
_CAP_SYS_ADMIN = 21
_NEEDED_CAPABILITIES = {
    _CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    _CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
    38: "CAP_PERFMON",
    39: "CAP_BPF",
}
_IMPLIED_BY_SYS_ADMIN = (38, 39)

_SYS_KERNEL = Path("/sys/kernel")
_TABLE_BYTES = 24 << 20
"""Memory of the BPF maps for a small process (``capture.sizing``)."""

_LESS_SECCOMP = "run it on the host, or allow that call in the container's seccomp profile"
_OTHER_KERNEL = "boot the distribution's own kernel"
_BECOME_ROOT = "run it with sudo"
_OTHER_PLACE = "run it on the host, or in a container started with --privileged --pid=host"


def check_machine() -> Check:
    """Header tree and registers are known for two machines."""
    machine = platform.machine()
    if sys.maxsize < 2**32 or not numbers():
        return Check("machine", False, f"{machine} is not supported", "use x86_64 or aarch64, 64 bits")
    return Check("machine", True, f"{machine}, Linux {platform.release()}")


def lacking_capabilities() -> list[str]:
    """Names of the capabilities that tracing needs and this process lacks (capabilities(7))."""
    effective = _effective_capabilities()
    if effective >> _CAP_SYS_ADMIN & 1:
        effective |= sum(1 << number for number in _IMPLIED_BY_SYS_ADMIN)
    return [name for number, name in _NEEDED_CAPABILITIES.items() if not effective >> number & 1]


def check_privileges() -> Check:
    """Root, or the capabilities for BPF programs and other processes' memory (capabilities(7))."""
    lacking = lacking_capabilities()
    if not lacking and not in_initial_user_namespace():
        return Check(
            "privileges", False, "root of a user namespace only: the kernel asks for more", _OTHER_PLACE
        )
    if not lacking:
        return Check("privileges", True, "root" if os.geteuid() == 0 else "sufficient capabilities")
    if os.geteuid() == 0:
        return Check("privileges", False, f"root lacks {', '.join(lacking)}", _OTHER_PLACE)
    if len(lacking) == len(_NEEDED_CAPABILITIES):
        return Check("privileges", False, "not root", _BECOME_ROOT)
    return Check(
        "privileges",
        False,
        f"not root, and without {', '.join(lacking)}",
        f"grant that too, or {_BECOME_ROOT}",
    )


def check_lockdown() -> Check:
    """kernel_lockdown(7): the level confidentiality forbids tracefs, and BPF programs to read memory."""
    modes = _read(Path("/sys/kernel/security/lockdown"))
    chosen = re.search(r"\[(\w+)\]", modes)
    level = chosen.group(1) if chosen else "none"
    if level == "confidentiality":
        return Check(
            "lockdown",
            False,
            "the kernel is locked down (confidentiality)",
            "boot it without lockdown=confidentiality",
        )
    return Check("lockdown", True, level)


def check_pid_namespace() -> Check:
    """/proc must show the PIDs of our PID namespace; it may have been mounted in another one."""
    name = "PID namespace"
    try:
        shown = str(Path("/proc/self").readlink())
        own = own_pid_namespace()
    except OSError as error:
        return Check(name, False, f"/proc is not readable ({error.strerror})", "mount /proc")
    except CannotTrace as error:
        return Check(name, False, error.what, error.remedy)
    if shown != str(os.getpid()):
        return Check(
            name,
            False,
            "/proc shows the process ids of another PID namespace than ours",
            "mount -t proc proc /proc, in a mount namespace of your own",
        )
    return Check(name, True, "the machine's own" if own.initial else "a container's own: only its processes")


def check_time_namespace() -> Check:
    """time_namespaces(7): our clock must be that of the initial namespace, as the times of events are."""
    offsets = _read(Path("/proc/self/timens_offsets"))  # empty before Linux 5.6
    if any(int(number) for line in offsets.splitlines() for number in line.split()[1:]):
        return Check(
            "time namespace", False, "the clock of this time namespace is not the kernel's", _OTHER_PLACE
        )
    return Check("time namespace", True, "the machine's own")


def check_tracefs() -> Check:
    """tracefs describes the tracepoints (Documentation/trace/ftrace.rst of the kernel)."""
    if tracefs := _tracefs():
        return Check("tracefs", True, f"mounted on {tracefs}")
    if not _SYS_KERNEL.is_dir():
        return Check("tracefs", False, "/sys is not mounted", "mount -t sysfs sysfs /sys")
    if not TRACEFS.is_dir():
        return Check(
            "tracefs",
            False,
            "this kernel has no tracefs (CONFIG_TRACING)",
            _OTHER_KERNEL,
        )
    if TRACEFS.is_mount():
        remedy = _OTHER_PLACE if os.geteuid() == 0 else _BECOME_ROOT
        return Check("tracefs", False, f"{TRACEFS} is not readable", remedy)
    if os.geteuid() == 0 and not _effective_capabilities() >> _CAP_SYS_ADMIN & 1:
        bind = f"give the container the host's: -v {TRACEFS}:{TRACEFS}:ro"
        return Check("tracefs", False, "tracefs is not mounted, which takes CAP_SYS_ADMIN", bind)
    return Check("tracefs", False, "tracefs is not mounted", f"mount -t tracefs tracefs {TRACEFS}")


def check_syscall_tracepoints() -> Check:
    """CONFIG_FTRACE_SYSCALLS: tracepoints at the entry and the exit of each system call."""
    tracefs = _tracefs()
    if tracefs and (tracefs / "events/syscalls/sys_exit_mmap/id").exists():
        return Check("syscall tracepoints", True, "present; mmap-leaks --threads-only leaves them alone")
    what = "this kernel has no system call tracepoints (CONFIG_FTRACE_SYSCALLS)"
    if not tracefs:
        what = "cannot be seen without tracefs"
    return Check("syscall tracepoints", False, what, _OTHER_KERNEL if tracefs else "")


def check_ring_buffer() -> Check:
    """bpf(2) makes a ring buffer of one page (since Linux 5.8)."""
    map_create, ringbuf = 0, 27
    attributes = struct.pack("5I", ringbuf, 0, 0, PAGE, 0)
    failure = _syscall("bpf", map_create, attributes, len(attributes))
    name = "BPF ring buffer"
    if failure == 0:
        return Check(name, True, "present")
    if failure == errno.EPERM:
        remedy = _OTHER_PLACE if os.geteuid() == 0 else _BECOME_ROOT
        return Check(name, False, "the kernel refuses bpf(2)", remedy)
    if failure == errno.ENOSYS:
        return Check(
            name,
            False,
            "this kernel has no bpf(2) (CONFIG_BPF_SYSCALL)",
            _OTHER_KERNEL,
        )
    return Check(
        name, False, f"this kernel has no BPF ring buffer ({os.strerror(failure)})", "use Linux 5.8 or later"
    )


def check_perf_events() -> Check:
    """perf_event_open(2), by which programs are attached to tracepoints, opens a dummy event of CPU 0."""
    software, dummy, attribute_bytes = 1, 9, 112
    attributes = struct.pack("IIQ", software, attribute_bytes, dummy).ljust(attribute_bytes, b"\0")
    failure = _syscall("perf_event_open", attributes, -1, 0, -1, 0)
    name = "perf events"
    if failure == 0:
        return Check(name, True, "present")
    if failure in (errno.EPERM, errno.EACCES):
        remedy = _LESS_SECCOMP if os.geteuid() == 0 else _BECOME_ROOT
        return Check(name, False, "the kernel refuses perf_event_open(2)", remedy)
    return Check(
        name,
        False,
        f"this kernel has no perf events ({os.strerror(failure)}, CONFIG_PERF_EVENTS)",
        _OTHER_KERNEL,
    )


def check_btf() -> Check:
    """CONFIG_DEBUG_INFO_BTF: the kernel's types, by which programs find a task's registers."""
    types = Path("/sys/kernel/btf/vmlinux")
    if os.access(types, os.R_OK):
        return Check("BTF", True, "present")
    if types.exists():
        return Check("BTF", False, f"{types} is not readable", _OTHER_PLACE)
    return Check(
        "BTF", False, "this kernel does not describe its types (CONFIG_DEBUG_INFO_BTF)", _OTHER_KERNEL
    )


def check_memory() -> Check:
    """Our control group, which the BPF maps are charged to, has memory for the trace of a small process."""
    try:
        require_memory(_TABLE_BYTES)
    except CannotTrace as refusal:
        return Check("memory", False, refusal.what, refusal.remedy)
    return Check("memory", True, "enough")


def check_kcmp() -> Check:
    """kcmp(2) shows which processes share an address space."""
    kcmp_vm, pid = 1, os.getpid()
    failure = _syscall("kcmp", pid, pid, kcmp_vm, 0, 0)
    if failure == 0:
        return Check("kcmp", True, "present", required=False)
    remedy = _OTHER_KERNEL
    if failure in (errno.EPERM, errno.EACCES):
        remedy = _LESS_SECCOMP if os.geteuid() == 0 else _BECOME_ROOT
    return Check(
        "kcmp",
        False,
        f"kcmp(2) does not work ({os.strerror(failure)}): other processes in the target's memory go unseen",
        remedy,
        required=False,
    )


def check_target_memory() -> Check:
    """Yama's ptrace_scope 3 forbids /proc/PID/mem even to root (admin-guide/LSM/Yama.rst of the kernel)."""
    scope = _read(Path("/proc/sys/kernel/yama/ptrace_scope")).strip()
    if scope != "3":
        return Check("target memory", True, "readable", required=False)
    return Check(
        "target memory",
        False,
        "kernel.yama.ptrace_scope is 3: the target's memory cannot be read, verdicts lack proof",
        "set kernel.yama.ptrace_scope to 2 or less in /etc/sysctl.d and reboot",
        required=False,
    )


def mount_tracefs() -> None:
    """Mount tracefs at its usual place if it is missing; failure is silent.

    Only as root, and only in a process of our own: a library must not mount anything.
    """
    if not own_process.is_claimed() or _tracefs() or os.geteuid() != 0 or not TRACEFS.is_dir():
        return
    # check_tracefs, which comes next, finds out whether this succeeded.
    subprocess.run(
        ["mount", "-t", "tracefs", "tracefs", str(TRACEFS)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def holds_tracefs(directory: Path) -> bool:
    """Whether tracefs is mounted there and can be read."""
    try:
        return (directory / "events").is_dir()
    except PermissionError:  # Python before 3.12 raises it
        return False


def _tracefs() -> Optional[Path]:
    return next(filter(holds_tracefs, (TRACEFS, DEBUGFS_TRACEFS)), None)


def _effective_capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _read(Path("/proc/self/status")), re.MULTILINE)
    return int(found.group(1), 16) if found else 0


def _syscall(name: str, *arguments: object) -> int:
    """Make a system call that Python has no function for; return 0 or its errno, and close the descriptor."""
    number = numbers().get(name)
    if number is None:
        return errno.ENOSYS
    try:
        result = syscall(number, *arguments)
    except OSError as error:
        return error.errno or errno.EINVAL
    if name in ("bpf", "perf_event_open"):
        os.close(result)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""
