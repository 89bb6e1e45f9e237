# SPDX-License-Identifier: Apache-2.0
"""The registers that threads had when they last entered the kernel, read by a BPF task iterator (Linux 5.15).

The program has forty instructions and a few offsets, so it is assembled here: a compiler would take longer
than the whole reading, and 60 MiB.  Formats: include/uapi/linux/bpf.h, Documentation/bpf/.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from ebpftrace.capture.btf import Btf
from ebpftrace.capture.cache import cached_or_made, kernel_identity
from ebpftrace.capture.installed import load_tracing
from ebpftrace.errors import CannotTrace
from ebpftrace.libc import syscall
from ebpftrace.procfs.namespaces import own_pid_namespace
from ebpftrace.syscall_numbers import numbers

_X86_64 = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "", "rip", "", "", "rsp", "",
)  # fmt: skip
"""struct pt_regs (arch/x86/include/asm/ptrace.h); fields without a name contain no address."""
_AARCH64 = (*(f"x{number}" for number in range(31)), "sp", "pc", "")
"""struct user_pt_regs (arch/arm64/include/uapi/asm/ptrace.h)."""
_REGISTERS = {"x86_64": _X86_64, "aarch64": _AARCH64}
_STACK_POINTER = {"x86_64": "rsp", "aarch64": "sp"}
_THREAD_POINTER = {"x86_64": ("fsbase", "fs_base"), "aarch64": ("uw", "tpidr_el0")}
"""The member of struct thread_struct, and the name of the register."""

_LINK_CREATE, _ITER_CREATE = 28, 33
_TRACE_ITER = 28
_PROBE_READ_KERNEL, _SEQ_WRITE, _TASK_PT_REGS = 113, 127, 175
_ATTRIBUTES = 128

_NAME_BYTES = 16
_FIELDS = (
    ("tid", "<u4"), ("inner_tid", "<u4"), ("running", "<u4"), ("fill", "<u4"), ("space", "<u8"),
    ("started", "<u8"), ("voluntary", "<u8"), ("involuntary", "<u8"), ("alternate_stack", "<u8"),
    ("clear_child_tid", "<u8"), ("thread_pointer", "<u8"), ("name", f"S{_NAME_BYTES}"),
)  # fmt: skip
_HEAD_BYTES = np.dtype(list(_FIELDS)).itemsize
_UPID_BYTES = 16
"""struct upid: a number, a pointer (include/linux/pid.h)."""
_READ = 1 << 16
_AGAIN = 64


States = NDArray[np.void]
"""One element for each thread, with the fields:

* ``tid``: in the initial PID namespace; ``inner_tid``: in its own; ``name``: bytes;
* ``started``: CLOCK_BOOTTIME ns; ``voluntary``, ``involuntary``: numbers of context switches;
* ``running``: not 0 while it is on a CPU, when its registers are those of its last entry into the kernel;
* ``registers``: as ``TaskStates.names`` says; ``thread_pointer``: fs_base or tpidr_el0;
* ``alternate_stack``: the lowest byte of the stack given to sigaltstack(2), 0 for none;
* ``clear_child_tid``: the address that the kernel clears at its exit (set_tid_address(2)), 0 for none;
* ``space``: identifies the address space.
"""


class _Layout(NamedTuple):
    """Offsets in bytes."""

    function: int
    mm: int
    pid: int
    tgid: int
    on_cpu: int
    started: int
    name: int
    switches: tuple[int, int]
    alternate: int
    clear_child_tid: int
    thread_pointer: int
    thread_pid: int
    level: int
    numbers: int
    number_size: int


class TaskStates:
    """Reads the threads of one address space.  ``close`` it.

    Raises CannotTrace where the kernel has no such iterator, or we may not load one.
    """

    def __init__(self, pid: int, groups: Sequence[int] = ()) -> None:
        """``pid`` is a process with that address space, ``groups`` are others, all in our PID namespace.

        Only in a nested PID namespace ``groups`` are needed, because the iterator must be given the processes
        there (Linux 6.1).
        """
        self._fds: list[int] = []
        machine = platform.machine()
        if machine not in _REGISTERS or "bpf" not in numbers():
            raise CannotTrace(f"registers of {machine} machines can't be read yet")
        self.names = _REGISTERS[machine]
        """Names of the registers; empty for fields that contain no address."""
        self.stack_pointer = self.names.index(_STACK_POINTER[machine])
        """Index of the stack pointer."""
        self.thread_pointer = _THREAD_POINTER[machine][1]
        """The name of the register that is the thread pointer."""
        self._type = np.dtype([*_FIELDS, ("registers", "<u8", (len(self.names),))])
        layout = _layout(_THREAD_POINTER[machine][0])
        self._links: list[int] = []
        try:
            if own_pid_namespace().initial:
                self._load(layout, _of_group(layout, pid))
                found = self._read()
                if len(found):
                    self.close()
                    self._load(layout, _of_space(layout, int(found["space"][0])))
            else:
                self._load(layout, _of_any(layout), (pid, *(group for group in groups if group != pid)))
        except OSError as error:
            self.close()
            raise CannotTrace(f"the kernel lets us read no registers ({error.strerror})") from None

    def close(self) -> None:
        """Let the kernel forget the program."""
        self._links.clear()
        while self._fds:
            os.close(self._fds.pop())

    def read(self) -> States:
        """Return the present threads; none if the process has exited.  Raises CannotTrace."""
        try:
            return self._read()
        except OSError as error:
            raise CannotTrace(f"the kernel lets us read no registers ({error.strerror})") from None

    def _load(self, layout: _Layout, chosen: bytes, groups: Sequence[Optional[int]] = (None,)) -> None:
        program = load_tracing(
            "registers", _program(layout, len(self.names), chosen), _TRACE_ITER, layout.function
        )
        self._fds.append(program)
        for group in groups:
            link = _link_create(program, group)
            self._fds.append(link)
            self._links.append(link)

    def _read(self) -> States:
        content = b"".join(_content(link, self._type.itemsize) for link in self._links)
        return np.frombuffer(content, self._type)


@lru_cache(maxsize=1)
def _layout(thread_pointer: str) -> _Layout:
    found = cached_or_made(
        repr(("task layout", thread_pointer, _Layout._fields, kernel_identity())),
        _parsed_layout,
        lambda: _find_layout(thread_pointer),
        lambda layout: json.dumps(layout).encode(),
    )
    assert found is not None
    return found


def _parsed_layout(raw: bytes) -> _Layout:
    found = _Layout(*json.loads(raw))
    return found._replace(switches=(found.switches[0], found.switches[1]))


def _find_layout(thread_pointer: str) -> _Layout:
    """Read the offsets from the kernel's BTF, which takes 0.3 s of CPU.  Raises CannotTrace."""
    btf = Btf.of_running_kernel()
    if not btf.has_name("bpf_task_pt_regs"):
        raise CannotTrace("registers can be read since Linux 5.15")
    wanted = {
        "task_struct": (
            "mm", "pid", "tgid", "on_cpu", "start_boottime", "comm", "nvcsw", "nivcsw", "sas_ss_sp",
            "clear_child_tid", "thread", "thread_pid",
        ),
        "thread_struct": (thread_pointer,),
        "pid": ("level", "numbers"),
        "upid": ("nr",),
    }  # fmt: skip
    offsets = btf.offsets(wanted)

    def offset(struct_name: str, member: str) -> int:
        if (struct_name, member) not in offsets:
            raise CannotTrace(f"the kernel's type information lacks {struct_name}.{member}")
        return offsets[struct_name, member]

    return _Layout(
        function=btf.function_id("bpf_iter_task"),
        mm=offset("task_struct", "mm"),
        pid=offset("task_struct", "pid"),
        tgid=offset("task_struct", "tgid"),
        on_cpu=offset("task_struct", "on_cpu"),
        started=offset("task_struct", "start_boottime"),
        name=offset("task_struct", "comm"),
        switches=(offset("task_struct", "nvcsw"), offset("task_struct", "nivcsw")),
        alternate=offset("task_struct", "sas_ss_sp"),
        clear_child_tid=offset("task_struct", "clear_child_tid"),
        thread_pointer=offset("task_struct", "thread") + offset("thread_struct", thread_pointer),
        thread_pid=offset("task_struct", "thread_pid"),
        level=offset("pid", "level"),
        numbers=offset("pid", "numbers") + offset("upid", "nr"),
        number_size=_UPID_BYTES,
    )


def _record_size(registers: int) -> int:
    return _HEAD_BYTES + 8 * registers


# --- instructions: Documentation/bpf/standardization/instruction-set.rst ----------------------------

_MOV, _ADD, _MUL = 0xB0, 0x00, 0x20
_REGISTER, _ALU64 = 0x08, 0x07
_LOAD_64, _LOAD_32 = 0x79, 0x61
_LOAD_IMMEDIATE = 0x18
_JUMP_EQUAL, _JUMP_NOT_EQUAL, _CALL, _EXIT = 0x10, 0x50, 0x85, 0x95
_JUMP = 0x05


def _instruction(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, to | of << 4, offset, value)


def _copy(to: int, of: int, add: int = 0) -> bytes:
    copied = _instruction(_ALU64 | _MOV | _REGISTER, to, of)
    return copied + _instruction(_ALU64 | _ADD, to, value=add) if add else copied


def _read_kernel(place: int, size: int) -> bytes:
    """Read ``size`` bytes at the address in r3 to the frame offset ``place``; zeros where that fails."""
    return b"".join(
        [
            _copy(1, 10, place),
            _instruction(_ALU64 | _MOV, 2, value=size),
            _instruction(_CALL, value=_PROBE_READ_KERNEL),
        ]
    )


def _task_field(place: int, offset: int, size: int = 8) -> bytes:
    return _copy(3, 6, offset) + _read_kernel(place, size)


_SCRATCH = -8


def _of_group(layout: _Layout, tgid: int) -> bytes:
    """Skip the next instruction if the task is of this thread group."""
    read = _task_field(_SCRATCH, layout.tgid, 4) + _instruction(_LOAD_32, 1, 10, _SCRATCH)
    return read + _instruction(_JUMP | _JUMP_EQUAL, 1, offset=1, value=tgid)


def _of_space(layout: _Layout, mm: int) -> bytes:
    """Skip the next instruction if the task has this address space (struct mm_struct)."""
    read = _task_field(_SCRATCH, layout.mm) + _instruction(_LOAD_64, 1, 10, _SCRATCH)
    wanted = _instruction(_LOAD_IMMEDIATE, 2, value=_signed(mm)) + _instruction(0, value=_signed(mm >> 32))
    return read + wanted + _instruction(_JUMP | _JUMP_EQUAL | _REGISTER, 1, 2, offset=1)


def _of_any(layout: _Layout) -> bytes:
    """Skip the next instruction if the task has an address space."""
    read = _task_field(_SCRATCH, layout.mm) + _instruction(_LOAD_64, 1, 10, _SCRATCH)
    return read + _instruction(_JUMP | _JUMP_NOT_EQUAL, 1, offset=1, value=0)


def _program(layout: _Layout, registers: int, chosen: bytes) -> bytes:
    """Write a record of each task for which ``chosen`` skips the instruction that follows it."""
    size = _record_size(registers)
    record = _SCRATCH - size
    end = [_instruction(_ALU64 | _MOV, 0), _instruction(_EXIT)]
    code = [
        _instruction(_LOAD_64, 7, 1, 0),  # struct bpf_iter__task: meta, task
        _instruction(_LOAD_64, 6, 1, 8),
        _instruction(_JUMP | _JUMP_NOT_EQUAL, 6, offset=len(end), value=0),
        *end,
        chosen,
        _instruction(_JUMP, offset=1),  # chosen: skipped
        _instruction(_JUMP, offset=len(end)),
        *end,
        _task_field(record, layout.pid, 4),
        # pid->numbers[pid->level].nr
        _task_field(_SCRATCH, layout.thread_pid),
        _instruction(_LOAD_64, 8, 10, _SCRATCH),
        _copy(3, 8, layout.level) + _read_kernel(_SCRATCH, 4),
        _instruction(_LOAD_32, 3, 10, _SCRATCH),
        _instruction(_ALU64 | _MUL, 3, value=layout.number_size),
        _instruction(_ALU64 | _ADD | _REGISTER, 3, 8),
        _instruction(_ALU64 | _ADD, 3, value=layout.numbers) + _read_kernel(record + 4, 4),
        _task_field(record + 8, layout.on_cpu, 4),
        _task_field(record + 12, layout.on_cpu, 4),  # padding
        _task_field(record + 16, layout.mm),
        _task_field(record + 24, layout.started),
        _task_field(record + 32, layout.switches[0]),
        _task_field(record + 40, layout.switches[1]),
        _task_field(record + 48, layout.alternate),
        _task_field(record + 56, layout.clear_child_tid),
        _task_field(record + 64, layout.thread_pointer),
        _task_field(record + 72, layout.name, _NAME_BYTES),
        _copy(1, 6) + _instruction(_CALL, value=_TASK_PT_REGS),
        _copy(3, 0) + _read_kernel(record + _HEAD_BYTES, 8 * registers),
        _instruction(_LOAD_64, 1, 7, 0),  # struct bpf_iter_meta: seq
        _copy(2, 10, record),
        _instruction(_ALU64 | _MOV, 3, value=size),
        _instruction(_CALL, value=_SEQ_WRITE),
        *end,
    ]
    return b"".join(code)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _link_create(program: int, group: Optional[int]) -> int:
    """Make an iterator over one thread group of our PID namespace, or over all tasks."""
    attributes = struct.pack("<IIII", program, 0, _TRACE_ITER, 0)
    if group is None:
        return _bpf(_LINK_CREATE, attributes)
    which = ctypes.create_string_buffer(struct.pack("<III", 0, group, 0))  # union bpf_iter_link_info: task
    return _bpf(_LINK_CREATE, attributes + struct.pack("<QI", ctypes.addressof(which), 12))


def _content(link: int, size: int) -> bytes:
    iterator = _bpf(_ITER_CREATE, struct.pack("<I", link))
    content = bytearray()
    idle = 0
    try:
        while True:
            try:
                part = os.read(iterator, _READ)
            except BlockingIOError:  # none of a million visited tasks was chosen
                idle += 1
                if idle > _AGAIN:
                    raise
                continue
            if not part:
                return bytes(content[: len(content) - len(content) % size])
            content += part
    finally:
        os.close(iterator)


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2).  Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTES, b"\0"), _ATTRIBUTES)
    result = syscall(numbers()["bpf"], command, ctypes.byref(buffer), _ATTRIBUTES)
    os.set_inheritable(result, False)
    return result
