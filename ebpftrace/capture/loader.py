# SPDX-License-Identifier: Apache-2.0
"""Compile the BPF programs for this machine, unless they are in the cache, load and attach them."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Optional

from ebpftrace.capture import layout, tables
from ebpftrace.capture.btf import Btf
from ebpftrace.capture.cache import (
    cached_or_made,
    compiler_identity,
    kernel_identity,
    read_cached,
    sources_identity,
    write_cached,
)
from ebpftrace.capture.compiled import Compiled
from ebpftrace.capture.compiler import compile_source
from ebpftrace.capture.installed import FENTRY, FEXIT, Installed
from ebpftrace.capture.layout import Machine, PidNamespaces, Probes, Sizes, definitions
from ebpftrace.capture.probes import choose
from ebpftrace.capture.sizing import Needs, kernel_bytes, sizes
from ebpftrace.capture.sources import Background, CompilerThread, bpf_dir, compiler_flags
from ebpftrace.capture.tracepoints import has_tracepoint
from ebpftrace.errors import CannotTrace
from ebpftrace.libc import give_back_memory
from ebpftrace.own_process import raise_file_limit
from ebpftrace.procfs.hostmemory import huge_page_bytes, require_memory
from ebpftrace.procfs.namespaces import own_pid_namespace
from ebpftrace.syscall_numbers import numbers
from ebpftrace.units import PAGE

_KERNEL_STACK = 16384
"""THREAD_SIZE of x86-64 (arch/x86/include/asm/page_64_types.h) and, unless a page is larger, of arm64."""

SYSTEM_CALLS = "syscalls"
"""Category of the tracepoints at system calls (/sys/kernel/tracing/events)."""

_MIRRORED: dict[str, type[ctypes.Structure]] = {
    "mappings": layout.MappingT,
    "threads": layout.ThreadT,
    "exited": layout.TaskT,
    "sites": layout.SiteT,
    "spaces": layout.SpaceT,
    "space_configs": layout.SpaceConfigT,
    "libcs": layout.LibcT,
    "libraries": layout.LibraryT,
    "walks": layout.WalkT,
}


def this_machine() -> tuple[Machine, bool]:
    """Return the properties of this machine, and whether tables must be preallocated.

    Raises CannotTrace where the machine cannot be traced.
    """
    btf = Btf.of_running_kernel()
    calls = numbers()
    if not calls:
        raise CannotTrace(f"{platform.machine()} machines can't be traced yet", "x86_64 and aarch64 can")
    has_helper = btf.has_name("bpf_task_pt_regs")
    machine = Machine(
        page=PAGE,
        huge_page=huge_page_bytes(),
        cpus=os.sysconf("SC_NPROCESSORS_CONF"),
        nr_clone=calls["clone"],
        nr_clone3=calls["clone3"],
        nr_futex=calls["futex"],
        task_signal=btf.member_offset("task_struct", "signal"),
        signal_flags=btf.member_offset("signal_struct", "flags"),
        # This struct came with the commit "exit: move and extend sched_process_exit() tracepoint" (6.16).
        exit_has_memory=btf.has_name("trace_event_raw_sched_process_exit"),
        has_prepare_exec=btf.has_name("trace_event_raw_sched_prepare_exec"),
        task_stack_offset=None if has_helper else btf.member_offset("task_struct", "stack"),
        registers_offset=0 if has_helper else max(_KERNEL_STACK, PAGE) - btf.struct_size("pt_regs"),
        pids=_pid_namespaces(btf),
        image_offsets=_offsets(btf, layout.IMAGE_OFFSETS),
        python_offsets=_offsets(btf, layout.PYTHON_OFFSETS),
    )
    # Since 6.1 tables without preallocation have an allocator of their own; before, the kernel logs a
    # warning about them.
    return machine, not btf.has_name("bpf_mem_alloc")


def _offsets(btf: Btf, members: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Offsets of these members on this kernel, by name; empty where any of them is missing."""
    found = cached_or_made(
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
    """Return the sizes of the tables, and the constants of the ledger's programs on this machine.

    Raises CannotTrace, also where memory does not suffice.
    """
    machine, preallocated = this_machine()
    table_sizes = sizes(needs, preallocated)
    require_memory(kernel_bytes(table_sizes, preallocated, machine.cpus, machine.page, platform.machine()))
    return table_sizes, {**definitions(machine, table_sizes, preallocated), **_optional_calls()}


_ATTACHED_TWICE = (
    ("sys_exit_shmat", "sys_exit_mremap"),
    ("sys_exit_io_setup", "sys_exit_mremap"),
    ("sys_enter_io_destroy", "sys_enter_shmdt"),
    ("sys_exit_io_destroy", "sys_exit_shmdt"),
)
"""Tracepoints with the same fields share a program, because each program costs compile time."""


def _optional_calls() -> dict[str, int]:
    """Numbers of calls that a kernel may lack, and whether it has shared memory (CONFIG_SYSVIPC)."""
    has = {"HAS_SHARED_MEMORY": 1} if has_tracepoint("syscalls", "sys_exit_shmdt") else {}
    calls = numbers()
    return {"NR_SHMAT": calls["shmat"], "NR_IO_SETUP": calls["io_setup"], **has}


def _attach_to_more(installed: Installed) -> None:
    for also, probe in _ATTACHED_TWICE:
        program = f"tracepoint__syscalls__{probe}"
        if program in installed.programs and has_tracepoint("syscalls", also):
            installed.attach(f"syscalls:{also}", program)


_AT_FUNCTION = {"enter": ("fentry__", FENTRY), "exit": ("fexit__", FEXIT)}
"""By the kind of tracepoint: prefix and attach type of the program at the function of the call."""


def _attach_at_functions(installed: Installed, functions: Mapping[str, int]) -> None:
    """Attach the programs for system calls at the functions of the calls that this kernel has."""
    own = [(probe, probe) for call in functions for probe in (f"sys_enter_{call}", f"sys_exit_{call}")]
    for place, source in (*own, *_ATTACHED_TWICE):
        _, point, call = place.split("_", 2)
        prefix, kind = _AT_FUNCTION[point]
        program = prefix + source.split("_", 2)[2]
        if not installed.has(program) or call not in functions:
            continue
        called = f"walk_further_from_{call}"
        if installed.has(called):
            walk = installed.load_called(called, functions[call])
            tables.update(installed.tables[f"further_from_{call}"], ctypes.c_uint32(0), ctypes.c_uint32(walk))
        installed.attach_call(call, program, kind, functions[call])


def install_ledger(
    wanted: Sizes,
    constants: Mapping[str, int],
    threads_only: bool = False,
    functions: Optional[Mapping[str, int]] = None,
) -> Installed:
    """Return the ledger's tables and programs, loaded and attached.  Raises CannotTrace, OSError (EMFILE).

    ``threads_only``: attach none to system calls.  ``functions``: attach those for system calls there, not to
    tracepoints (``capture.probes``).
    """
    at_functions = None if threads_only else functions
    if at_functions is not None:
        constants = {**constants, "FENTRY": 1}
    entries = {
        "mappings": wanted.mappings,
        "exited": wanted.exited,
        "threads": wanted.threads,
        "sites": wanted.sites,
    }
    mirrored = dict(_MIRRORED)
    if wanted.settle_ns:
        mirrored["given"] = layout.GivenT
    installed = install(
        "ledger.c", constants, mirrored, entries, without=SYSTEM_CALLS if threads_only else ""
    )
    try:
        _chain(installed)
        if at_functions is not None:
            _attach_at_functions(installed, at_functions)
        else:
            _attach_to_more(installed)
    except BaseException:
        installed.close()
        raise
    return installed


def _chain(installed: Installed) -> None:
    """Let the program that walks glibc's lists tail-call itself."""
    walk = installed.load("walk_further")
    tables.update(installed.tables["further"], ctypes.c_uint32(0), ctypes.c_uint32(walk))


def install(
    source: str,
    constants: Mapping[str, int],
    mirrored: Mapping[str, type[ctypes.Structure]],
    entries: Mapping[str, int],
    without: str = "",
    shared: Mapping[str, int] = MappingProxyType({}),
) -> Installed:
    """Return the tables and programs of one source file, from the cache or compiled.

    The programs whose names say where are attached, except to tracepoints of the category ``without``.
    ``mirrored``: by table, the struct that must have the same size in C and in Python.  ``entries`` and
    ``shared`` as in ``Installed``.  Raises CannotTrace, OSError (EMFILE).
    """
    key = _key(source, constants)
    cached = None if key is None else read_cached(key)
    if cached is not None:
        # If cached programs can't be loaded, compiled ones are tried, and their error is the one shown.
        with suppress(CannotTrace, ValueError):
            return _started(Compiled.from_bytes(cached), mirrored, entries, without, shared)
    compiled = CompilerThread(lambda: compile_source(bpf_dir() / source, constants)).wait()
    give_back_memory()  # 18 MiB that clang used
    installed = _started(compiled, mirrored, entries, without, shared)
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
    shared: Mapping[str, int],
) -> Installed:
    installed = Installed(compiled, entries, shared)
    try:
        for table, mirror in mirrored.items():
            if installed.leaf_bytes(table) != ctypes.sizeof(mirror):
                raise AssertionError(f"layout of table {table} differs between bpf and Python")
        installed.start(without)
    except BaseException:
        installed.close()
        raise
    return installed


class Loading:
    """Compiles, loads and attaches the ledger's programs in the background.

    A context manager: at its end the programs are detached.  Until ``wait`` has returned, the environment of
    the process is changed (``sources.CompilerThread``).
    """

    def __init__(self, needs: Needs) -> None:
        """Begin.  Raises CannotTrace where this machine can't be traced, OSError (EMFILE)."""
        raise_file_limit()
        # Not in the thread, where it would compete with the caller for Python's lock.
        self.sizes, constants = ledger_constants(needs)
        self.constants = constants
        """The constants that the ledger's programs are compiled with."""
        self._installed = Background(lambda: self._install(needs))

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            installed = self._installed.wait()
        except Exception:
            return
        installed.close()

    def _install(self, needs: Needs) -> Installed:
        if needs.threads_only:
            return install_ledger(self.sizes, self.constants, threads_only=True)
        functions = choose(needs.probes).functions
        try:
            return install_ledger(self.sizes, self.constants, functions=functions)
        except CannotTrace:
            if functions is None or needs.probes is Probes.FENTRY:
                raise
        return install_ledger(self.sizes, self.constants)

    def wait(self) -> Installed:
        """Return the tables and programs, which this object closes.  Raises CannotTrace, OSError (EMFILE)."""
        return self._installed.wait()
