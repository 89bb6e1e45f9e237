# SPDX-License-Identifier: Apache-2.0
"""Places and privileges: where tracing works, and the one line where it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from ebpftrace.capture.sources import CompilerThread, bpf_dir

ROOT = Path(__file__).resolve().parents[2]
DOCTOR = f"{sys.executable} -m ebpftrace doctor --json"
_REQUIRE = """
from ebpftrace import own_process
from ebpftrace.capture.checks.features import require_tracing
own_process.claim()
require_tracing()
"""
REQUIRE = f"{sys.executable} -c '{_REQUIRE}'"
UNMOUNT = "umount -l /sys/kernel/debug 2>/dev/null; umount -l /sys/kernel/tracing"
NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"

COMPILE = """
import pathlib
from bcc import BPF
from ebpftrace.capture.sources import CompilerThread, compiler_flags

source = r'''
#include <uapi/linux/ptrace.h>
struct row { u64 address; u32 pid; bool flag; };
BPF_HASH(rows, u64, struct row, 1000);
BPF_ARRAY(counts, u64, 4);
BPF_PERCPU_ARRAY(scratch, struct row, 1);
BPF_PERCPU_HASH(per_cpu, u32, u64, 16);
BPF_RINGBUF_OUTPUT(events, 8);
BPF_STACK_TRACE(stacks, 1000);
BPF_F_TABLE("hash", u64, struct row, grows, 100000, BPF_F_NO_PREALLOC);
TRACEPOINT_PROBE(syscalls, sys_exit_mmap)
{
    struct pt_regs registers = {};
    struct row row = {.address = args->ret, .flag = true};
    bpf_probe_read_user(&registers, sizeof(registers), (void *)row.address);
    rows.update(&row.address, &row);
    grows.update(&row.address, &row);
    stacks.get_stackid(args, BPF_F_USER_STACK);
    events.ringbuf_output(&row, sizeof(row), 0);
    return PT_REGS_SP(&registers) == 0;
}
TRACEPOINT_PROBE(sched, sched_process_exit) { return args->pid; }
TRACEPOINT_PROBE(task, task_newtask) { return args->clone_flags; }
RAW_TRACEPOINT_PROBE(sched_process_fork) { return 0; }
'''
here = pathlib.Path.cwd()
program = CompilerThread(lambda: BPF(text=source, cflags=[*compiler_flags(), "-Wall", "-Werror"])).wait()
assert pathlib.Path.cwd() == here
program.cleanup()
"""


def shell(
    command: str, cwd: Path = ROOT, environment: Optional[dict[str, str]] = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def in_own_mounts(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def failing(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The failing checks by name."""
    assert result.stderr == ""
    return {check["name"]: check for check in json.loads(result.stdout)["checks"] if not check["ok"]}


def test_bcc_compiles_in_surroundings_of_its_own() -> None:
    here, symbols = Path.cwd(), Path("/proc/kallsyms")
    environment = dict(os.environ)

    def look() -> tuple[Path, bytes, Optional[str]]:
        return Path.cwd(), symbols.read_bytes(), os.environ.get("BCC_KERNEL_SOURCE")

    assert CompilerThread(look).wait() == (bpf_dir(), b"", str(bpf_dir()))
    assert (Path.cwd(), dict(os.environ)) == (here, environment)
    assert symbols.read_bytes()
    assert "kallsyms" not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(ZeroDivisionError):
        CompilerThread(lambda: 1 / 0).wait()


def test_doctor_is_content() -> None:
    result = shell(DOCTOR)
    assert [name for name, check in failing(result).items() if check["required"]] == []
    assert result.returncode == 0
    assert "trial" in result.stdout


@pytest.mark.parametrize(
    "variable", ["ARCH=mips", "BCC_KERNEL_SOURCE=/nonexistent", "BCC_LINUX_VERSION_CODE=1"]
)
def test_header_tree_compiles_whatever_the_environment(variable: str) -> None:
    name, value = variable.split("=")
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=ROOT,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


def test_header_tree_compiles_where_other_headers_lie(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux/types.h").write_text("#error the headers of the current directory were read\n")
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")


def test_unmounted_tracefs_is_mounted_when_tracing() -> None:
    result = in_own_mounts(f"{UNMOUNT}; {REQUIRE} && test -d /sys/kernel/tracing/events/syscalls")
    assert (result.returncode, result.stderr) == (0, "")


def test_doctor_mounts_tracefs_as_a_trace_does_and_says_the_same() -> None:
    result = in_own_mounts(f"{UNMOUNT}; {DOCTOR} && test -d /sys/kernel/tracing/events/syscalls")
    assert result.returncode == 0, result.stdout
    assert "tracefs" not in failing(result)


def test_kernel_without_system_call_tracepoints_is_reported() -> None:
    hide = "mount -t tmpfs tmpfs /sys/kernel/tracing/events/syscalls"
    what = "this kernel has no system call tracepoints (CONFIG_FTRACE_SYSCALLS)"
    lacking = failing(in_own_mounts(f"{hide}; {DOCTOR}"))["syscall tracepoints"]
    assert (lacking["what"], lacking["required"]) == (what, True)
    result = in_own_mounts(f"{hide}; {sys.executable} -m ebpftrace mmap-leaks -d 1 -p $$")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"ebpftrace: {what}: {lacking['remedy']}\n"


def test_ordinary_user_is_asked_to_become_root() -> None:
    if shell(f"{NOBODY} test -r {ROOT}/pyproject.toml").returncode:
        pytest.skip("this checkout is in a place where only root may read")
    result = shell(f"{NOBODY} {DOCTOR}")
    assert result.returncode == 1
    assert failing(result)["privileges"]["what"] == "not root"
    assert "not root: run it with sudo" in shell(f"{NOBODY} {REQUIRE}").stderr


def test_four_capabilities_suffice() -> None:
    capabilities = "+bpf,+perfmon,+sys_ptrace,+dac_read_search"
    result = shell(f"{NOBODY} --inh-caps={capabilities} --ambient-caps={capabilities} {DOCTOR}")
    assert [name for name, check in failing(result).items() if check["required"]] == []
    assert result.returncode == 0


def test_user_without_one_of_the_capabilities_is_reported_which() -> None:
    capabilities = "+bpf,+sys_ptrace,+dac_read_search"
    user = f"{NOBODY} --inh-caps={capabilities} --ambient-caps={capabilities}"
    if shell(f"{NOBODY} test -r {ROOT}/pyproject.toml").returncode:
        pytest.skip("this checkout is in a place where only root may read")
    result = shell(f"{user} {DOCTOR}")
    assert failing(result)["privileges"]["what"] == "not root, and without CAP_PERFMON"


def test_too_little_address_space_is_reported() -> None:
    result = shell(f"ulimit -v 200000; {DOCTOR}")
    assert failing(result)["bcc"]["what"] == "195 MiB of address space are too little for bcc"


def test_root_without_a_capability_is_reported_which() -> None:
    # CAP_SYS_ADMIN stands in for CAP_BPF, so both have to go.
    result = shell(f"setpriv --inh-caps=-all --bounding-set=-bpf,-sys_admin {DOCTOR}")
    assert failing(result)["privileges"]["what"] == "root lacks CAP_BPF"


def test_container_is_good_enough() -> None:
    result = shell(f"unshare --pid --fork --mount-proc {DOCTOR}")
    assert "PID namespace" not in failing(result)


def test_proc_of_another_namespace_is_reported() -> None:
    result = shell(f"unshare --pid --fork {DOCTOR}")
    assert "another PID namespace" in failing(result)["PID namespace"]["what"]
