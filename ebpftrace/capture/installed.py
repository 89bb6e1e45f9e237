# SPDX-License-Identifier: Apache-2.0
"""Make the tables of compiled programs, load the programs, and attach them; all without bcc.

A program is attached to a tracepoint by a perf event on one CPU: the program runs for the tracepoint on
every CPU, whether that event is enabled or not (kernel/trace/bpf_trace.c: ``perf_event_attach_bpf_prog``).
The event stays disabled, as an enabled one would also record each call on its CPU.  All file descriptors
belong to this process: however it ends, the kernel closes them and so detaches the programs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Callable, TypeVar

from ebpftrace.capture.compiled import Compiled, Program, Table, relocated
from ebpftrace.capture.tables import bpf
from ebpftrace.capture.tracepoints import open_event
from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.hostmemory import MORE_MEMORY, memory_limit
from ebpftrace.text import size

# enum bpf_cmd, enum bpf_prog_type (include/uapi/linux/bpf.h)
_MAP_CREATE, PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 5, 17
TRACEPOINT, PERF_EVENT, RAW_TRACEPOINT = 5, 7, 17
_TRACING = 26
# enum bpf_attach_type: at the entry and at the exit of a kernel function.
FENTRY, FEXIT = 24, 25
SET_BPF = 0x40042408  # PERF_EVENT_IOC_SET_BPF, include/uapi/linux/perf_event.h
_TRACEPOINT_PREFIX, _RAW_TRACEPOINT_PREFIX = "tracepoint__", "raw_tracepoint__"
_NAME_BYTES = 15
"""The kernel cuts names to this (BPF_OBJ_NAME_LEN without the NUL)."""
_LOG_BYTES = 1 << 20
_ATTEMPTS = 5
"""A pending signal makes the verifier give up (kernel/bpf/verifier.c, EAGAIN)."""

T = TypeVar("T")


class _MapCreate(ctypes.Structure):
    """The BPF_MAP_CREATE part of ``union bpf_attr``."""

    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * (_NAME_BYTES + 1)),
    )


class ProgLoad(ctypes.Structure):
    """The BPF_PROG_LOAD part of ``union bpf_attr``."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * (_NAME_BYTES + 1)),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("func_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("line_info_cnt", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
    )


class _RawTracepoint(ctypes.Structure):
    """The BPF_RAW_TRACEPOINT_OPEN part of ``union bpf_attr``."""

    _fields_ = (("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32), ("padding", ctypes.c_uint32))


def load_tracing(name: str, code: bytes, attach_type: int, function: int) -> int:
    """Return the file descriptor of a loaded program for a kernel function, by its BTF number.

    ``attach_type``: FENTRY, FEXIT, or that of an iterator.  Raises OSError.
    """
    return _with_memory(lambda: bpf(PROG_LOAD, _attributes(name, code, _TRACING, attach_type, function)))


def attach_function(program: int) -> int:
    """Attach what ``load_tracing`` returned; the program is detached when the result is closed.

    Raises OSError.
    """
    return bpf(_RAW_TRACEPOINT_OPEN, _RawTracepoint(name=0, prog_fd=program))


class Installed:
    """The tables and programs of one source file in the kernel; ``close`` detaches and drops them."""

    def __init__(
        self, compiled: Compiled, entries: Mapping[str, int], shared: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Make the tables.  Raises CannotTrace.

        ``entries``: numbers of entries, by name, that replace those in the source.  ``shared``: file
        descriptors, by name, of tables of another source file that these programs use as well; they are
        duplicated.
        """
        self.tables: dict[str, int] = {}
        """File descriptors by name; ``programs`` likewise for loaded programs."""
        self.programs: dict[str, int] = {}
        self._compiled = {program.name: program for program in compiled.programs}
        self._events: dict[str, int] = {}
        self._leaf_bytes = {table.name: table.leaf_bytes for table in compiled.tables}
        try:
            for table in compiled.tables:
                if table.name in shared:
                    self.tables[table.name] = os.dup(shared[table.name])
                    continue
                number = entries.get(table.name, table.entries)
                self.tables[table.name] = _make(table._replace(entries=number))
            self._places = dict(enumerate(self.tables.values()))
        except BaseException:
            self.close()
            raise

    def start(self, without: str = "") -> None:
        """Load and attach the programs whose names say where, except those of the category ``without``.

        Raises CannotTrace, OSError.
        """
        for name in self._compiled:
            if name.startswith(_TRACEPOINT_PREFIX):
                category, event = name[len(_TRACEPOINT_PREFIX) :].split("__", 1)
                if category != without:
                    self.attach(f"{category}:{event}", name)
            elif name.startswith(_RAW_TRACEPOINT_PREFIX):
                self._attach_raw(name[len(_RAW_TRACEPOINT_PREFIX) :], name)

    def leaf_bytes(self, table: str) -> int:
        """Size of a value of a table, in bytes."""
        return self._leaf_bytes[table]

    def load(self, program: str, kind: int = TRACEPOINT) -> int:
        """Return the file descriptor of a program, after loading it if needed.  Raises CannotTrace."""
        if program not in self.programs:
            self.programs[program] = _load(self._compiled[program], kind, self._places)
        return self.programs[program]

    def attach(self, tracepoint: str, program: str) -> None:
        """Attach a program to a tracepoint, CATEGORY:EVENT.  Raises CannotTrace, OSError."""
        fd = self.load(program)
        event = open_event(tracepoint)
        try:
            fcntl.ioctl(event, SET_BPF, fd)
        except OSError:
            os.close(event)
            raise
        self._events[tracepoint] = event

    def attach_call(self, call: str, program: str, attach_type: int, function: int) -> None:
        """Attach a program at the function of a system call, by its BTF number.  Raises CannotTrace, OSError.

        It is loaded for this function only: ``programs`` has it as PROGRAM:CALL.
        """
        fd = self._load_at(f"{program}:{call}", program, attach_type, function)
        self._events[f"{program}:{call}"] = attach_function(fd)

    def load_called(self, program: str, function: int) -> int:
        """Load a program that those at the entry of this function tail-call.  Raises CannotTrace."""
        return self._load_at(program, program, FENTRY, function)

    def _load_at(self, key: str, program: str, attach_type: int, function: int) -> int:
        compiled = self._compiled[program]
        self.programs[key] = _load(compiled, _TRACING, self._places, attach_type, function)
        return self.programs[key]

    def has(self, program: str) -> bool:
        """Whether the source has this program."""
        return program in self._compiled

    def close(self) -> None:
        """Detach all programs, drop all tables; may be called again."""
        for descriptors in (self._events, self.programs, self.tables):
            while descriptors:
                _, fd = descriptors.popitem()
                with suppress(OSError):
                    os.close(fd)

    def _attach_raw(self, tracepoint: str, program: str) -> None:
        fd = self.load(program, RAW_TRACEPOINT)
        name = ctypes.create_string_buffer(tracepoint.encode())
        self._events[tracepoint] = bpf(
            _RAW_TRACEPOINT_OPEN, _RawTracepoint(name=ctypes.addressof(name), prog_fd=fd)
        )


def _make(table: Table) -> int:
    attributes = _MapCreate(
        map_type=table.type,
        key_size=table.key_bytes,
        value_size=table.leaf_bytes,
        max_entries=table.entries,
        map_flags=table.flags,
        map_name=table.name[:_NAME_BYTES].encode(),
    )
    try:
        return _with_memory(lambda: bpf(_MAP_CREATE, attributes))
    except OSError as error:
        raise _refused(f"table {table.name}", error, "") from error


def _load(
    program: Program, kind: int, places: Mapping[int, int], attach_type: int = 0, function: int = 0
) -> int:
    attributes = _attributes(
        program.name.rpartition("__")[2], relocated(program.instructions, places), kind, attach_type, function
    )
    try:
        return _with_memory(lambda: bpf(PROG_LOAD, attributes))
    except OSError as error:
        raise _refused(f"program {program.name}", error, _complaint(attributes)) from error


def _attributes(name: str, code: bytes, kind: int, attach_type: int, function: int) -> ProgLoad:
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = ProgLoad(
        prog_type=kind,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        prog_name=name[:_NAME_BYTES].encode(),
        expected_attach_type=attach_type,
        attach_btf_id=function,
    )
    attributes.buffers = (instructions, license_text)  # they live as long as the addresses of them
    return attributes


def _complaint(attributes: ProgLoad) -> str:
    """The verifier's reason for refusing a program: the last line of its log that is not a statistic."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attributes.log_level, attributes.log_size, attributes.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    with suppress(OSError):
        os.close(bpf(PROG_LOAD, attributes))
    lines = log.value.decode("utf-8", "replace").splitlines()
    printed = [
        line for line in lines if line.strip() and not line.startswith(("processed ", "verification time"))
    ]
    return printed[-1].strip() if printed else ""


def _with_memory(make: Callable[[], T]) -> T:
    """Call bpf(2), and again without RLIMIT_MEMLOCK, which limits BPF memory before Linux 5.11."""
    try:
        return _unless_interrupted(make)
    except PermissionError:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return _unless_interrupted(make)


def _unless_interrupted(make: Callable[[], T]) -> T:
    for _ in range(_ATTEMPTS):
        with suppress(BlockingIOError):  # EAGAIN
            return make()
    return make()


def _refused(what: str, error: OSError, printed: str) -> Exception:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return error
    if error.errno == errno.ENOMEM:
        limit = memory_limit()
        allowed = f": the control group of this process allows {size(limit.limit)}" if limit else ""
        return CannotTrace(f"the kernel has no memory for our tables{allowed}", MORE_MEMORY)
    why = f"{what}: {error.strerror}" + (f"; {printed}" if printed else "")
    remedy = "ebpftrace doctor says what is missing"
    return CannotTrace(f"the kernel refused our programs ({why})", remedy)
