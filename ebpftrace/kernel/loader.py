"""Compile the BPF programs with bcc, load and attach them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Mapping
from typing import Any, Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel import layout
from ebpftrace.kernel.btf import Btf
from ebpftrace.kernel.layout import Machine, PidNamespaces, Sizes, definitions
from ebpftrace.kernel.sizing import Needs, kernel_bytes, sizes
from ebpftrace.kernel.sources import bpf_dir, compiler_flags
from ebpftrace.kernel.tracepoints import has_tracepoint, silence
from ebpftrace.process.memorylimit import MORE_MEMORY, memory_limit, require_memory
from ebpftrace.process.namespaces import own_pid_namespace
from ebpftrace.syscalls import numbers
from ebpftrace.text import size

_KERNEL_STACK = 16384
"""THREAD_SIZE of x86-64 (arch/x86/include/asm/page_64_types.h) and, unless a page is larger, of arm64."""

_MIRRORED = {
    "mappings": layout.MappingT,
    "threads": layout.ThreadT,
    "exited": layout.LifeT,
    "sites": layout.SiteT,
    "spaces": layout.SpaceT,
    "told": layout.ToldT,
    "libcs": layout.LibcT,
    "libraries": layout.LibraryT,
    "walks": layout.WalkT,
}


def this_machine() -> tuple[Machine, bool]:
    """Return what the programs must know of this machine, and whether tables must be preallocated.

    Raises CannotTrace where the machine cannot be traced.
    """
    btf = Btf.of_running_kernel()
    calls = numbers()
    if not calls:
        raise CannotTrace(f"{platform.machine()} machines can't be traced yet", "x86_64 and aarch64 can")
    has_helper = btf.has_name("bpf_task_pt_regs")
    page = os.sysconf("SC_PAGE_SIZE")
    machine = Machine(
        page=page,
        huge_page=_huge_page(),
        cpus=os.sysconf("SC_NPROCESSORS_CONF"),
        nr_clone=calls["clone"],
        nr_clone3=calls["clone3"],
        nr_futex=calls["futex"],
        task_signal=btf.member_offset("task_struct", "signal"),
        signal_flags=btf.member_offset("signal_struct", "flags"),
        # Both came with one change ("exit: move and extend sched_process_exit() tracepoint").
        exit_has_memory=btf.has_name("trace_event_raw_sched_process_exit"),
        has_prepare_exec=btf.has_name("trace_event_raw_sched_prepare_exec"),
        task_stack_offset=None if has_helper else btf.member_offset("task_struct", "stack"),
        registers_offset=0 if has_helper else max(_KERNEL_STACK, page) - btf.struct_size("pt_regs"),
        pids=_pid_namespaces(btf),
        image_offsets=_offsets(btf, layout.IMAGE_OFFSETS),
        python_offsets=_offsets(btf, layout.PYTHON_OFFSETS),
    )
    # Since 6.1 tables that are filled at run time have an allocator of their own; before, the
    # kernel logs a warning about them.
    return machine, not btf.has_name("bpf_mem_alloc")


def _offsets(btf: Btf, members: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Where these members lie on this kernel, by name; nothing where any of them is missing."""
    wanted: dict[str, list[str]] = {}
    for struct_name, member in members.values():
        wanted.setdefault(struct_name, []).append(member)
    found = btf.offsets(wanted)
    if len(found) < len(members):
        return {}
    return {name: found[place] for name, place in members.items()}


def _pid_namespaces(btf: Btf) -> Optional[PidNamespaces]:
    own = own_pid_namespace()
    if own.initial:
        return None
    return PidNamespaces(
        inode=own.inode,
        task_pid=btf.member_offset("task_struct", "thread_pid"),
        pid_level=btf.member_offset("pid", "level"),
        pid_numbers=btf.member_offset("pid", "numbers"),
        namespace_inode=btf.member_offset("pid_namespace", "ns") + btf.member_offset("ns_common", "inum"),
    )


def ledger_constants(needs: Needs) -> tuple[Sizes, dict[str, int]]:
    """Return the room for what is traced, and what the ledger's programs are compiled with on this machine.

    Raises CannotTrace, also where there is no memory for it.
    """
    machine, preallocated = this_machine()
    room = sizes(needs, preallocated)
    require_memory(kernel_bytes(room, preallocated, machine.cpus, machine.page, platform.machine()))
    return room, {**definitions(machine, room, preallocated), **_optional_calls()}


_SERVED_TOO = (
    ("sys_exit_shmat", "sys_exit_mremap"),
    ("sys_exit_io_setup", "sys_exit_mremap"),
    ("sys_enter_io_destroy", "sys_enter_shmdt"),
    ("sys_exit_io_destroy", "sys_exit_shmdt"),
)
"""Tracepoints whose fields are alike, so that one program serves both: each program takes clang its time."""


def _optional_calls() -> dict[str, int]:
    """Numbers of calls that a kernel may be built without, and whether it has them (CONFIG_SYSVIPC)."""
    has = {"HAS_SHARED_MEMORY": 1} if has_tracepoint("syscalls", "sys_exit_shmdt") else {}
    calls = numbers()
    return {"NR_SHMAT": calls["shmat"], "NR_IO_SETUP": calls["io_setup"], **has}


def _attach_to_more(bpf: Any) -> None:
    for also, probe in _SERVED_TOO:
        program = f"tracepoint__syscalls__{probe}".encode()
        if program in bpf.funcs and has_tracepoint("syscalls", also):
            bpf.attach_tracepoint(tp=f"syscalls:{also}".encode(), fn_name=program)
    silence(bpf)


def load_ledger(constants: Mapping[str, int]) -> Any:
    """Return the ``bcc.BPF`` object of the ledger's programs, loaded and attached; for ``sources.Apart``.

    Raises CannotTrace.
    """
    bpf = load_programs("ledger.c", constants, _MIRRORED)
    _attach_to_more(bpf)
    _chain(bpf)
    return bpf


def _chain(bpf: Any) -> None:
    """Have the program that walks glibc's lists go on where it has had to stop."""
    import bcc

    walk = bpf.load_func("walk_further", bcc.BPF.TRACEPOINT)
    bpf["further"][ctypes.c_int(0)] = ctypes.c_int(walk.fd)


def load_programs(
    source: str, constants: Mapping[str, int], mirrored: Mapping[str, type[ctypes.Structure]]
) -> Any:
    """Return the ``bcc.BPF`` object of one source file, loaded, its ``TRACEPOINT_PROBE`` programs attached.

    For ``sources.Apart``.  ``mirrored`` are the structs, by table, whose sizes must be the same in C and in
    Python.
    Raises CannotTrace, OSError (EMFILE).
    """
    import bcc  # heavy, and missing where the distribution's package is

    flags = [f"-D{name}={value}" for name, value in constants.items()]
    flags += [f"-I{bpf_dir()}", *compiler_flags()]
    try:
        bpf = bcc.BPF(src_file=os.fsencode(bpf_dir() / source).decode(), cflags=flags)
    except Exception as error:  # bcc raises plain Exception for every kind of failure
        if os.strerror(errno.EMFILE) in str(error):  # descriptors.make_room can't know of many processes
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        if os.strerror(errno.ENOMEM) in str(error):
            raise CannotTrace(
                f"the kernel has no memory for our tables{_limit_told()}", MORE_MEMORY
            ) from error
        raise CannotTrace(
            f"the kernel or bcc refused our programs ({error})", "ebpftrace doctor says what is missing"
        ) from error
    silence(bpf)
    for table, mirror in mirrored.items():
        if ctypes.sizeof(bpf[table].Leaf) != ctypes.sizeof(mirror):
            raise AssertionError(f"layout of table {table} differs between bpf and Python")
    return bpf


def _limit_told() -> str:
    limit = memory_limit()
    return f": the control group of this process allows {size(limit.limit)}" if limit else ""


def _huge_page() -> int:
    """Return the default huge page size in bytes (proc(5), meminfo: Hugepagesize)."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:  # noqa: PTH123 - read line by line
        for line in meminfo:
            if line.startswith("Hugepagesize:"):
                return int(line.split()[1]) * 1024
    return 2 << 20
