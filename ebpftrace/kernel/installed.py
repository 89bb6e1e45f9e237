# SPDX-License-Identifier: Apache-2.0
"""Make the tables of compiled programs, load the programs, and attach them; all without bcc.

Programs are attached to a tracepoint by a perf event on one CPU: the program runs for the tracepoint on
every CPU, whether that event is enabled or not (kernel/trace/bpf_trace.c: ``perf_event_attach_bpf_prog``).
It stays disabled: an enabled one would also record each call on its CPU, for nobody.  All file descriptors
belong to this process: however it ends, the kernel closes them, and no probe outlives it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from typing import Callable, TypeVar

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel.compiled import Compiled, Program, Table, relocated
from ebpftrace.kernel.tables import bpf
from ebpftrace.kernel.tracepoints import open_event
from ebpftrace.process.memorylimit import MORE_MEMORY, memory_limit
from ebpftrace.text import size

# enum bpf_cmd, enum bpf_prog_type (include/uapi/linux/bpf.h)
_MAP_CREATE, PROG_LOAD, _RAW_TRACEPOINT_OPEN = 0, 5, 17
TRACEPOINT, RAW_TRACEPOINT = 5, 17
_SET_BPF = 0x40042408  # PERF_EVENT_IOC_SET_BPF, include/uapi/linux/perf_event.h
_TRACEPOINT_PREFIX, _RAW_TRACEPOINT_PREFIX = "tracepoint__", "raw_tracepoint__"
_NAME_BYTES = 15
"""Of a name that the kernel keeps (BPF_OBJ_NAME_LEN), without its zero byte."""
_LOG_BYTES = 1 << 20
_ATTEMPTS = 5
"""The verifier gives up where a signal waits (kernel/bpf/verifier.c, EAGAIN)."""

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
    )


class _RawTracepoint(ctypes.Structure):
    """The BPF_RAW_TRACEPOINT_OPEN part of ``union bpf_attr``."""

    _fields_ = (("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32), ("padding", ctypes.c_uint32))


class Installed:
    """The tables and programs of one source file in the kernel; ``close`` detaches and drops them."""

    def __init__(self, compiled: Compiled, entries: Mapping[str, int]) -> None:
        """Make the tables; ``entries`` are the sizes of those that the caller sizes.  Raises CannotTrace."""
        self.tables: dict[str, int] = {}
        """File descriptors by name, and those of the programs that are loaded."""
        self.programs: dict[str, int] = {}
        self._compiled = {program.name: program for program in compiled.programs}
        self._events: dict[str, int] = {}
        self._leaf_bytes = {table.name: table.leaf_bytes for table in compiled.tables}
        try:
            for table in compiled.tables:
                number = entries.get(table.name, table.entries)
                self.tables[table.name] = _make(table._replace(entries=number))
            self._places = dict(enumerate(self.tables.values()))
        except BaseException:
            self.close()
            raise

    def start(self, without: str = "") -> None:
        """Load and attach the programs whose names say where they belong, but for a category of tracepoints.

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
        """Size of what a table holds."""
        return self._leaf_bytes[table]

    def load(self, program: str, kind: int = TRACEPOINT) -> int:
        """Return the file descriptor of a program, which is loaded if it is not.  Raises CannotTrace."""
        if program not in self.programs:
            self.programs[program] = _load(self._compiled[program], kind, self._places)
        return self.programs[program]

    def attach(self, tracepoint: str, program: str) -> None:
        """Have a program run at a tracepoint, CATEGORY:EVENT.  Raises CannotTrace, OSError."""
        fd = self.load(program)
        event = open_event(tracepoint)
        try:
            fcntl.ioctl(event, _SET_BPF, fd)
        except OSError:
            os.close(event)
            raise
        self._events[tracepoint] = event

    def detach(self, tracepoint: str) -> None:
        """End what ``attach`` began."""
        os.close(self._events.pop(tracepoint))

    def close(self) -> None:
        """Detach all programs, drop all tables; may be called again."""
        for held in (self._events, self.programs, self.tables):
            while held:
                _, fd = held.popitem()
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


def _load(program: Program, kind: int, places: Mapping[int, int]) -> int:
    code = ctypes.create_string_buffer(relocated(program.instructions, places), len(program.instructions))
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = ProgLoad(
        prog_type=kind,
        insn_cnt=len(program.instructions) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(license_text),
        prog_name=program.name.rpartition("__")[2][:_NAME_BYTES].encode(),
    )
    try:
        return _with_memory(lambda: bpf(PROG_LOAD, attributes))
    except OSError as error:
        raise _refused(f"program {program.name}", error, _complaint(attributes)) from error


def _complaint(attributes: ProgLoad) -> str:
    """What the verifier says of a program that it refused: its last line, but for figures of its own work."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attributes.log_level, attributes.log_size, attributes.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    with suppress(OSError):
        os.close(bpf(PROG_LOAD, attributes))
    lines = log.value.decode("utf-8", "replace").splitlines()
    said = [
        line for line in lines if line.strip() and not line.startswith(("processed ", "verification time"))
    ]
    return said[-1].strip() if said else ""


def _with_memory(make: Callable[[], T]) -> T:
    """Call bpf(2); again without a limit of locked memory, which counts such memory before Linux 5.11."""
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


def _refused(what: str, error: OSError, said: str) -> Exception:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return error
    if error.errno == errno.ENOMEM:
        limit = memory_limit()
        allowed = f": the control group of this process allows {size(limit.limit)}" if limit else ""
        return CannotTrace(f"the kernel has no memory for our tables{allowed}", MORE_MEMORY)
    why = f"{what}: {error.strerror}" + (f"; {said}" if said else "")
    remedy = "ebpftrace doctor says what is missing"
    return CannotTrace(f"the kernel refused our programs ({why})", remedy)
