# SPDX-License-Identifier: Apache-2.0
"""The BPF programs for this machine: compiled, unless that was done before, loaded and attached."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel import layout, tables
from ebpftrace.kernel.btf import Btf
from ebpftrace.kernel.cache import (
    compiler_identity,
    kept,
    kernel_identity,
    read_cached,
    sources_identity,
    write_cached,
)
from ebpftrace.kernel.compiled import Compiled
from ebpftrace.kernel.compiler import compile_source
from ebpftrace.kernel.installed import Installed
from ebpftrace.kernel.layout import Machine, PidNamespaces, Sizes, definitions
from ebpftrace.kernel.sizing import Needs, kernel_bytes, sizes
from ebpftrace.kernel.sources import Apart, bpf_dir, compiler_flags
from ebpftrace.kernel.tracepoints import has_tracepoint
from ebpftrace.process.memorylimit import require_memory
from ebpftrace.process.namespaces import own_pid_namespace
from ebpftrace.spare import give_back_memory
from ebpftrace.syscalls import numbers

_KERNEL_STACK = 16384
"""THREAD_SIZE of x86-64 (arch/x86/include/asm/page_64_types.h) and, unless a page is larger, of arm64."""

SYSTEM_CALLS = "syscalls"
"""Category of the tracepoints at system calls (/sys/kernel/tracing/events)."""

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
    found = kept(
        repr(("offsets", sorted(members.items()), kernel_identity())),
        _parsed_offsets,
        lambda: _find_offsets(btf, members),
        lambda offsets: json.dumps(offsets).encode(),
    )
    return found or {}


def _parsed_offsets(raw: bytes) -> dict[str, int]:
    return {str(name): int(offset) for name, offset in json.loads(raw).items()}


def _find_offsets(btf: Btf, members: Mapping[str, tuple[str, str]]) -> Optional[dict[str, int]]:
    wanted: dict[str, list[str]] = {}
    for struct_name, member in members.values():
        wanted.setdefault(struct_name, []).append(member)
    found = btf.offsets(wanted)
    if len(found) < len(members):
        return None
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


def _attach_to_more(installed: Installed) -> None:
    for also, probe in _SERVED_TOO:
        program = f"tracepoint__syscalls__{probe}"
        if program in installed.programs and has_tracepoint("syscalls", also):
            installed.attach(f"syscalls:{also}", program)


def install_ledger(wanted: Sizes, constants: Mapping[str, int], threads_only: bool = False) -> Installed:
    """Return the ledger's tables and programs, loaded and attached.  Raises CannotTrace, OSError (EMFILE).

    ``threads_only``: none at system calls.  A single one there makes the kernel take the slow way into each
    call of each process (include/linux/entry-common.h, SYSCALL_WORK_SYSCALL_TRACEPOINT).
    """
    entries = {
        "mappings": wanted.mappings,
        "exited": wanted.exited,
        "threads": wanted.threads,
        "sites": wanted.sites,
    }
    installed = install(
        "ledger.c", constants, _MIRRORED, entries, without=SYSTEM_CALLS if threads_only else ""
    )
    try:
        _attach_to_more(installed)
        _chain(installed)
    except BaseException:
        installed.close()
        raise
    return installed


def _chain(installed: Installed) -> None:
    """Have the program that walks glibc's lists go on where it has had to stop."""
    walk = installed.load("walk_further")
    tables.update(installed.tables["further"], ctypes.c_uint32(0), ctypes.c_uint32(walk))


def install(
    source: str,
    constants: Mapping[str, int],
    mirrored: Mapping[str, type[ctypes.Structure]],
    entries: Mapping[str, int],
    without: str = "",
) -> Installed:
    """Return the tables and programs of one source file; attached are those that say by their names where.

    But for those of the category of tracepoints ``without``.

    They are compiled only where that was not done before.  ``mirrored`` are the structs, by table, whose
    sizes must be the same in C and in Python; ``entries`` the sizes of tables that the C does not know.
    Raises CannotTrace, OSError (EMFILE).
    """
    key = _key(source, constants)
    cached = None if key is None else read_cached(key)
    if cached is not None:
        # What is kept may be of no use after all; what is made anew says why.
        with suppress(CannotTrace, ValueError):
            return _started(Compiled.from_bytes(cached), mirrored, entries, without)
    compiled = Apart(lambda: compile_source(bpf_dir() / source, constants)).wait()
    give_back_memory()  # 18 MiB that clang used
    installed = _started(compiled, mirrored, entries, without)
    if key is not None:
        write_cached(key, compiled.to_bytes())
    return installed


def _key(source: str, constants: Mapping[str, int]) -> Optional[str]:
    """Everything that the compiled programs depend on; None where there is no compiler."""
    compiler = compiler_identity()
    if compiler is None:
        return None
    return repr(
        (
            "compiled", source, sorted(constants.items()), compiler_flags(), compiler, kernel_identity(),
            sources_identity(bpf_dir()),
        )
    )  # fmt: skip


def _started(
    compiled: Compiled,
    mirrored: Mapping[str, type[ctypes.Structure]],
    entries: Mapping[str, int],
    without: str,
) -> Installed:
    installed = Installed(compiled, entries)
    try:
        for table, mirror in mirrored.items():
            if installed.leaf_bytes(table) != ctypes.sizeof(mirror):
                raise AssertionError(f"layout of table {table} differs between bpf and Python")
        installed.start(without)
    except BaseException:
        installed.close()
        raise
    return installed


def _huge_page() -> int:
    """Return the default huge page size in bytes (proc(5), meminfo: Hugepagesize)."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:  # noqa: PTH123 - read line by line
        for line in meminfo:
            if line.startswith("Hugepagesize:"):
                return int(line.split()[1]) * 1024
    return 2 << 20
