# SPDX-License-Identifier: Apache-2.0
"""The structs of ``bpf/shared.h`` as Python reads them, and the constants of the BPF programs.

The C receives the constants as ``-D`` definitions (``definitions``), so each is defined only here.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, Optional

from ebpftrace.model import SIZE_UNKNOWN
from ebpftrace.syscall_numbers import MAX_ERRNO

NAME_BYTES = 16
STEP_BYTES = 4096
"""Stacks are read in steps of the smallest page size on every machine: with pages of 16 KiB a per-CPU record
would exceed the kernel's limit (32 KiB: PCPU_MIN_UNIT_SIZE, include/linux/percpu.h)."""
CALLS = ("mmap", "munmap", "mremap", "brk", "clone", "thread_exit", "fork")
IMAGES = 4
ADDRESS_BITS = 56
"""User addresses of x86-64 and arm64 stay below 2**56 (5-level page tables, LVA)."""
_MIN_PAGE_SHIFT = 12
SPACE_SHIFT = ADDRESS_BITS - _MIN_PAGE_SHIFT
"""Bit of a mapping's key at which the number of the address space begins, above the number of the page."""
MAX_SPACES = 3072
"""Address spaces at once; numbers of ended processes are reused."""
GIVEN_NUMBERS = 2 * MAX_SPACES
"""Processes that have a number; more than are alive, because an exit may be missed."""
NO_SPACE = 0xFFFF
"""A followed process without a number, because it has created no thread."""
LOST_SPACE = 0xFFFE
"""A process that created a thread when no number was left; it is followed no longer."""
MAX_LIBCS = 1024
"""Different files of libc in all traced processes; each container image has its own."""
SIGNATURE_WORDS, CLONE_SIGNATURE_WORDS = (96, 192) if platform.machine() == "aarch64" else (64, 128)
"""Words of the stack that go into the signature of a call, and of a clone call; less than a step.

The frames of glibc are larger on aarch64: those of pthread_create take 82 words there (2.43) and 69 on x86-64
(2.36, 2.41), those below main 48 and 30.
"""
CACHE_OWNERS = 1024
"""Slots for the threads that have cached a row, by a hash of the row's key; a power of two."""
STACK_USERS = 8192
"""Slots for the threads that were given a stack, by a hash of the stack; a power of two."""
PLACES = 16_384
"""Slots for the times at which places were touched, by a hash of the place; a power of two."""
SMALL_SHIFT, LARGE_SHIFT = 19 - _MIN_PAGE_SHIFT, 26 - _MIN_PAGE_SHIFT
"""Shifts of keys: a small place has 512 KiB, a large one 64 MiB.  Ranges in more than two small places are
recorded for large ones; ranges in more than two of these, for the whole address space."""
SMALL_PAGES = 64
"""Rows with more pages are not searched for other rows inside when they are unmapped."""
REGISTER_BYTES = {"x86_64": 168, "aarch64": 288}
"""Size of ``struct pt_regs`` in ``bpf/include/uapi/linux/ptrace.h``."""
AUXV_WORDS = 32
"""Words of a program's auxiliary vector that are sent: the addresses of program and interpreter are among the
first twelve entries (fs/binfmt_elf.c, create_elf_tables)."""
PATH_NAMES = 24
"""Most names in a path, mount points included, that is sent."""
NAME_SLOT = 256
"""NAME_MAX (include/uapi/linux/limits.h) and the NUL."""
CODE_REST_NS = 100_000_000
"""Least time between two events CODE of an address space."""
_MAX_PID_LEVEL = 32
"""How deep PID namespaces nest (include/linux/pid_namespace.h)."""


UNSEEN_SITE = 1
"""Site of a mapping whose stack was not recorded, because its process had created no thread yet."""


def key_of(space: int, address: int) -> int:
    """The key of a mapping."""
    return address >> _MIN_PAGE_SHIFT | space << SPACE_SHIFT


def address_of(key: int) -> int:
    """The start of the mapping with this key."""
    return (key & (1 << SPACE_SHIFT) - 1) << _MIN_PAGE_SHIFT


class EventKind(IntEnum):
    """Kinds of ``struct event_t``."""

    UNMAPPED = 1
    EVICTED = 2
    MOVE = 3
    EXEC = 4
    CODE = 5
    FAILED = 6
    LISTED = 7
    WALKED = 8
    AWAITED = 9
    SETTLED = 10


class CallKind(IntEnum):
    """``enum call``: the call at which a stack was copied."""

    MMAP = 0
    MUNMAP = 1
    MREMAP = 2
    BRK = 3
    CLONE = 4
    THREAD_EXIT = 5
    FORK = 6
    FAULT = 7
    """No call: a page fault."""


_u8, _u32, _u64, _s64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
_name = ctypes.c_char * NAME_BYTES


class MappingT(ctypes.Structure):
    """``struct mapping_t``: one row of the ledger."""

    _fields_ = (
        ("length", _u64),
        ("since", _u64),
        ("made_at", _u64),
        ("mapper_started_at", _u64),
        ("site", _u64),
        ("mapper_tid", _u32),
        ("prot", _u32),
        ("flags", _u32),
        ("is_stack", _u32),
    )


MAPPING = struct.Struct("=5Q4I")
"""``MappingT`` for reading many at once."""


class NewestT(ctypes.Structure):
    """``struct newest_t``: the row of the mapping that a thread made last, which is not in the table."""

    _fields_ = (("key", _u64), ("row", MappingT), ("check", _u64))


NEWEST_WORDS = struct.Struct("=9Q")
"""``NewestT`` as words."""
CHECK_WEIGHTS = (1, 3, 5, 7, 9, 11, 13, 15)
"""The sum of the first words with these weights, modulo 2**64, is the last word."""


class TaskT(ctypes.Structure):
    """``struct task_t``: one task in a traced address space."""

    _fields_ = (
        ("started_at", _u64),
        ("exited_at", _u64),
        ("outstanding", _s64),
        ("brk_growth", _s64),
        ("stack", _u64),
        ("tid", _u32),
        ("space", _u32),
        ("name", _name),
        ("stack_size", _u64),
        ("site", _u64),
        ("creator_started_at", _u64),
        ("creator_tid", _u32),
        ("tgid", _u32),
        ("creator_name", _name),
        ("creator_sp", _u64),
        ("last_sp", _u64),
        ("last_sp_at", _u64),
        ("is_thread", _u8),
        ("dies_with", _u8),
        ("reserved", ctypes.c_uint16),
        ("inner_tid", _u32),
    )


class LibcKeyT(ctypes.Structure):
    """``struct libc_key_t``: identifies the file of a libc."""

    _fields_ = (("inode", _u64), ("device", _u32), ("reserved", _u32))


class ThreadT(ctypes.Structure):
    """``struct thread_t``: a live task, or an exited one whose stack may still be mapped."""

    _fields_ = (
        ("task", TaskT),
        ("waits_for_exec", _u32),
        ("has_called", _u32),
        ("calls", _u64 * len(CALLS)),
        ("entered_at", _u64),
        ("row", MappingT),
        ("has_row", _u32),
        ("needs_replay", _u32),
        ("entered", _u32),
        ("cache_disabled", _u32),
        ("failures_from", _u64),
        ("failures_sent", _u64),
        ("image", _u32),
        ("parent", _u32),
        ("libc", LibcKeyT),
        ("libc_base", _u64),
        ("brk", _u64),
        ("newest", NewestT),
    )


class GivenT(ctypes.Structure):
    """``struct given_t``: the number of the address space of a followed process."""

    _fields_ = (("started_at", _u64), ("space", _u32), ("reserved", _u32))


class TaskKeyT(ctypes.Structure):
    """``struct task_key_t``: identifies an exited thread."""

    _fields_ = (("started_at", _u64), ("tid", _u32), ("reserved", _u32))


class RangeT(ctypes.Structure):
    """``struct range_t``."""

    _fields_ = (("start", _u64), ("end", _u64))


PYTHON_FIELDS = (
    *("interpreters", "threads", "next_thread", "thread_id", "frame", "by_c_frame", "of_c_frame"),
    *("code", "instruction", "kind", "caller"),
)


class PythonT(ctypes.Structure):
    """``struct python_t``: where CPython keeps the frames of a thread; see ``procfs.cpython``."""

    _fields_ = tuple((name, _u64) for name in PYTHON_FIELDS)


class SpaceConfigT(ctypes.Structure):
    """``struct space_config_t``: the configuration of an address space."""

    _fields_ = (
        ("code", RangeT * IMAGES),
        ("all_code", RangeT),
        ("baseline_at", _u64),
        ("python", PythonT),
    )


class TouchedT(ctypes.Structure):
    """``struct touched_t``."""

    _fields_ = (("ambiguous_at", _u64), ("moved_at", _u64))


class SpaceT(ctypes.Structure):
    """``struct space_t``: one traced address space."""

    _fields_ = (
        ("latest", TouchedT),
        ("everywhere", TouchedT),
        ("brk", _u64),
        ("code_at", _u64),
        ("settled_at", _u64),
        ("alone_at", _u64),
        ("calls", _u64 * len(CALLS)),
        ("lost_events", _u64),
        ("lost_mappings", _u64),
        ("lost_threads", _u64),
        ("lost_runs", _u64),
    )


class LibcT(ctypes.Structure):
    """``struct libc_t``: the addresses and offsets of a glibc that a walk along its lists needs."""

    _fields_ = (
        ("text", _u64),
        ("root", _u64),
        ("used", _u64),
        ("user", _u64),
        ("link", _u32),
        ("tid", _u32),
        ("cancelhandling", _u32),
        ("setxid", _u32),
        ("join", _u32),
        ("start_routine", _u32),
        ("block", _u32),
        ("reserved", _u32),
    )


class LibraryT(ctypes.Structure):
    """``struct library_t``: the libc of an address space."""

    _fields_ = (("key", LibcKeyT), ("base", _u64), ("is_known", _u64), ("libc", LibcT))


class WalkT(ctypes.Structure):
    """``struct walk_t``: a walk along the lists of an address space."""

    _fields_ = (
        ("ended_at", _u64),
        ("began_at", _u64),
        ("heads", _u64 * 2),
        ("node", _u64),
        ("came_from", _u64),
        ("seen", _u64),
        ("sent", _u64),
        ("list", _u32),
        ("passes", _u32),
        ("again", _u32),
        ("stop", _u32),
        ("tgid", _u32),
        ("reason", _u32),
    )


class WalkStop(IntEnum):
    """``WALK_*`` of ``bpf/walk.h``: how a walk ended."""

    COMPLETE = 1
    CHANGED = 2
    TOO_LONG = 3
    NO_LIST = 4


class ListedEvent(NamedTuple):
    """``struct event_t`` of kind LISTED."""

    kind: int
    space: int
    tid: int
    descriptor: int
    join: int
    start_routine: int
    block: int
    block_size: int
    thread_tid: int
    cancelhandling: int
    setxid: int
    place: int


class SettledEvent(NamedTuple):
    """``struct event_t`` of kind SETTLED."""

    kind: int
    space: int
    tid: int
    at: int
    started_at: int
    tgid: int
    image: int
    name: bytes
    parent: int


class CallEvent(NamedTuple):
    """``struct event_t`` of the other kinds."""

    kind: int
    space: int
    tid: int
    at: int
    done_at: int
    start: int
    length: int
    new_start: int
    new_length: int
    flags: int


class RowEvent(NamedTuple):
    """``struct event_t`` of kind EVICTED."""

    kind: int
    space: int
    tid: int
    since: int
    made_at: int
    start: int
    length: int
    mapper_started_at: int
    site: int
    prot: int
    flags: int


CALL_EVENT = struct.Struct("=HHI7Q")
ROW_EVENT = struct.Struct("=HHI6QII")
SETTLED_EVENT = struct.Struct(f"=HHI2QII{NAME_BYTES}sI12x")
LISTED_EVENT = struct.Struct("=HHI5QiIII")


class SiteT(ctypes.Structure):
    """``struct site_t``: the counters of a site."""

    _fields_ = (("copies", _u64), ("brk_growth", _s64), ("brk_calls", _u64))


class CountT(ctypes.Structure):
    """A value that consists of one number."""

    _fields_ = (("count", _u64),)


class CopyHead(NamedTuple):
    """``struct copy_t`` up to a start routine's argument; Python's frames and registers follow."""

    site: int
    at: int
    tid: int
    space: int
    call: int
    size: int
    is_cut: int
    missing: int
    python_count: int
    has_argument: int


FAULT = struct.Struct(f"=5QII{NAME_BYTES}s")
"""``struct fault_t`` of bpf/faults.c: at, address, period, site, started_at, tid, space, name."""
FAULT_PAGES = 2048
"""Ring buffer of page faults, in units of 4 KiB; a power of two.  64 bytes a fault and 8 of its header."""
FAULT_COUNTERS = 65_536
"""Threads for which the perf event that counts their faults is recorded; the map evicts older ones."""

COPY_HEAD = struct.Struct("=QQ8I")
ARGUMENT_WORDS = 10
"""Words copied from where a start routine's argument points to, beginning one word before."""
COPY_ARGUMENT = struct.Struct(f"={ARGUMENT_WORDS}Q")
PYTHON_FRAME = struct.Struct("=4Q")
"""``struct python_frame_t``"""
PythonFrames = tuple[tuple[int, int, int, int], ...]
PYTHON_FRAMES = 24
"""Most Python frames that are recorded for a call; the innermost ones."""
PYTHON_BYTES = (PYTHON_FRAMES + 1) * PYTHON_FRAME.size
"""Of those, and of one more, of which the address alone is recorded."""
PYTHON_THREADS = 256
"""Most threads of an interpreter that are searched for the calling one, the youngest first."""


def python_frames(record: memoryview, first: int, count: int) -> tuple[PythonFrames, bool]:
    """The frames of Python code in a record, from byte ``first`` on, and whether there were more of them."""
    end = first + min(count, PYTHON_FRAMES) * PYTHON_FRAME.size
    next_address, *_ = PYTHON_FRAME.unpack_from(record, end)
    return tuple(PYTHON_FRAME.iter_unpack(record[first:end])), next_address != 0


class ImageHead(NamedTuple):
    """``struct image_t`` up to the auxiliary vector; the names follow after that."""

    at: int
    start: int
    length: int
    offset: int
    inode: int
    device: int
    tid: int
    space: int
    is_program: int
    slots: int
    reserved: int


IMAGE_HEAD = struct.Struct("=5Q6I")
IMAGE_AUXV = struct.Struct(f"={AUXV_WORDS}Q")

IMAGE_OFFSETS = {
    "TASK_MM": ("task_struct", "mm"),
    "TASK_FILES": ("task_struct", "files"),
    "TASK_FS": ("task_struct", "fs"),
    "FS_ROOT": ("fs_struct", "root"),
    "FILES_FDT": ("files_struct", "fdt"),
    "FDTABLE_FD": ("fdtable", "fd"),
    "FDTABLE_MAX_FDS": ("fdtable", "max_fds"),
    "FILE_PATH": ("file", "f_path"),
    "PATH_MNT": ("path", "mnt"),
    "PATH_DENTRY": ("path", "dentry"),
    "DENTRY_PARENT": ("dentry", "d_parent"),
    "DENTRY_NAME": ("dentry", "d_name"),
    "DENTRY_INODE": ("dentry", "d_inode"),
    "QSTR_NAME": ("qstr", "name"),
    "INODE_INO": ("inode", "i_ino"),
    "INODE_SB": ("inode", "i_sb"),
    "SUPER_BLOCK_DEV": ("super_block", "s_dev"),
    "MOUNT_MNT": ("mount", "mnt"),
    "MOUNT_PARENT": ("mount", "mnt_parent"),
    "MOUNT_MOUNTPOINT": ("mount", "mnt_mountpoint"),
    "VFSMOUNT_ROOT": ("vfsmount", "mnt_root"),
    "MM_EXE_FILE": ("mm_struct", "exe_file"),
    "MM_AUXV": ("mm_struct", "saved_auxv"),
    "TASK_PID_OFFSET": ("task_struct", "thread_pid"),
    "PID_LEVEL_OFFSET": ("pid", "level"),
    "PID_NUMBERS_OFFSET": ("pid", "numbers"),
}
"""Members whose offsets ``bpf/images.h`` and ``bpf/pids.h`` need, by the names of their constants."""


PYTHON_OFFSETS = {"TASK_THREAD": ("task_struct", "thread"), "THREAD_FSBASE": ("thread_struct", "fsbase")}
"""Likewise for ``bpf/python.h``: the thread pointer, which is fsbase on x86_64."""


@dataclass(frozen=True)
class PidNamespaces:
    """How the BPF programs find a task's tid in a PID namespace; offsets in bytes."""

    inode: int
    """Identifies the namespace."""
    task_pid: int
    """``task_struct.thread_pid``"""
    pid_level: int
    """``pid.level``"""
    pid_numbers: int
    """``pid.numbers``"""
    namespace_inode: int
    """``pid_namespace.ns.inum``"""

    def definitions(self) -> dict[str, int]:
        """The constants of ``bpf/pids.h`` by name."""
        return {
            "PID_NAMESPACE": self.inode,
            "TASK_PID_OFFSET": self.task_pid,
            "PID_LEVEL_OFFSET": self.pid_level,
            "PID_NUMBERS_OFFSET": self.pid_numbers,
            "NAMESPACE_INODE_OFFSET": self.namespace_inode,
        }


@dataclass(frozen=True)
class Machine:
    """Properties of this machine that the BPF programs need; sizes and offsets in bytes."""

    page: int
    huge_page: int
    cpus: int
    """Number of configured CPUs; all CPU numbers are below it."""
    nr_clone: int
    nr_clone3: int
    nr_futex: int
    task_signal: int
    """``task_struct.signal``"""
    signal_flags: int
    """``signal_struct.flags``"""
    exit_has_memory: bool = False
    """An exiting task still has its memory at the tracepoint of its exit (Linux 6.16)."""
    has_prepare_exec: bool = False
    """There is a tracepoint at an exec that can't fail any more, while the old memory exists (6.10)."""
    task_stack_offset: Optional[int] = None
    """Offset of ``task_struct.stack``, on kernels without ``bpf_task_pt_regs`` (before 5.15)."""
    registers_offset: int = 0
    """Offset of ``struct pt_regs`` in that stack."""
    pids: Optional[PidNamespaces] = None
    """The tracer's PID namespace; None if it is the initial one."""
    image_offsets: Mapping[str, int] = field(default_factory=dict)
    """``IMAGE_OFFSETS`` of this kernel; empty where it lacks one: then only /proc shows executed files."""
    python_offsets: Mapping[str, int] = field(default_factory=dict)
    """``PYTHON_OFFSETS`` of this kernel; empty on other machines: then Python frames are not recorded."""

    def definitions(self) -> dict[str, int]:
        """The constants of ``bpf/{call,pids}.h`` by name."""
        constants = {"PAGE_BYTES": self.page, "STEP_BYTES": STEP_BYTES, "MAX_ERRNO": MAX_ERRNO}
        constants["MAX_PID_LEVEL"] = _MAX_PID_LEVEL
        if self.task_stack_offset is not None:
            constants["TASK_STACK_OFFSET"] = self.task_stack_offset
            constants["REGISTERS_OFFSET"] = self.registers_offset
        if self.pids is not None:
            constants.update(self.pids.definitions())
        if self.exit_has_memory:
            constants["EXIT_HAS_MEMORY"] = 1
        if self.has_prepare_exec:
            constants["HAS_PREPARE_EXEC"] = 1
        constants.update(self.image_offsets)
        constants.update(self.python_offsets)
        return constants


class Follow(IntEnum):
    """Which descendants of a traced process are traced, too."""

    NOTHING = 0
    EXEC = 1
    """The process itself after it executed another program."""
    FORKS = 2
    """Also its children."""


class Probes(Enum):
    """Where the programs for system calls are attached (``capture.probes``)."""

    AUTO = "auto"
    """FENTRY where it loses nothing, else TRACEPOINTS."""
    TRACEPOINTS = "tracepoints"
    FENTRY = "fentry"
    """At the functions of the calls."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of the BPF maps; in entries unless said otherwise."""

    mappings: int
    exited: int
    """Exited threads that left mappings."""
    threads: int
    sites: int
    stack_bytes: int
    """Most bytes of a stack that are copied; a multiple of STEP_BYTES; 0: no stacks."""
    copies_per_second: int
    """Most copies of stacks of known sites, for each CPU."""
    event_pages: int = 2048
    """Ring buffer of events, in units of 4 KiB; a power of two.  80 bytes an event."""
    copy_pages: int = 1024
    """Ring buffer of stack copies, in units of 4 KiB; a power of two."""
    image_pages: int = 128
    """Ring buffer of executed files, in units of 4 KiB; a power of two.  A file takes 1.5 KiB."""
    fresh_copies_per_second: int = 1000
    """Most first copies of sites, for each CPU."""
    site_copies: int = 4
    """Copies of a site that count as its first ones."""
    follow: Follow = Follow.NOTHING
    settle_ns: int = 0
    """As in ``sizing.Needs``; likewise ``brk_stacks``."""
    brk_stacks: bool = False


def ring_pages(units: int, page: int) -> int:
    """Return the size in pages, at least one, of a ring buffer of so many units of 4 KiB."""
    return max(1, units * 4096 // page)


def signed_bytes(call: CallKind) -> int:
    """Return how many bytes above the stack pointer the signature of a call covers."""
    return 8 * (CLONE_SIGNATURE_WORDS if call is CallKind.CLONE else SIGNATURE_WORDS)


BPF_F_NO_PREALLOC = 1  # include/uapi/linux/bpf.h


def definitions(machine: Machine, sizes: Sizes, preallocated: bool) -> dict[str, int]:
    """The constants of ``bpf/*.c`` by name."""
    constants = {
        **machine.definitions(),
        "HUGE_PAGE_BYTES": machine.huge_page,
        "CPUS": machine.cpus,
        "NR_CLONE": machine.nr_clone,
        "NR_CLONE3": machine.nr_clone3,
        "NR_FUTEX": machine.nr_futex,
        "TASK_SIGNAL": machine.task_signal,
        "SIGNAL_FLAGS": machine.signal_flags,
        "MAX_LIBCS": MAX_LIBCS,
        "ADDRESS_BITS": ADDRESS_BITS,
        "SPACE_SHIFT": SPACE_SHIFT,
        "NO_SPACE": NO_SPACE,
        "LOST_SPACE": LOST_SPACE,
        "UNSEEN_SITE": UNSEEN_SITE,
        "FOLLOW_EXEC": int(sizes.follow >= Follow.EXEC),
        "FOLLOW_FORKS": int(sizes.follow >= Follow.FORKS),
        "SETTLE_NS": sizes.settle_ns,
        "BRK_STACKS": int(sizes.brk_stacks),
        "MAX_SPACES": MAX_SPACES,
        "GIVEN_NUMBERS": GIVEN_NUMBERS,
        # These depend on the targets, and are set when the maps are made (loader.install_ledger).
        "MAX_MAPPINGS": 1,
        "MAX_EXITED": 1,
        "MAX_THREADS": 1,
        "MAX_SITES": 1,
        "CACHE_OWNERS": CACHE_OWNERS,
        "STACK_USERS": STACK_USERS,
        "PLACES": PLACES,
        "SMALL_SHIFT": SMALL_SHIFT,
        "LARGE_SHIFT": LARGE_SHIFT,
        "SMALL_PAGES": SMALL_PAGES,
        "EVENT_PAGES": ring_pages(sizes.event_pages, machine.page),
        "COPY_PAGES": ring_pages(sizes.copy_pages, machine.page),
        "IMAGE_PAGES": ring_pages(sizes.image_pages, machine.page),
        "FAULT_PAGES": ring_pages(FAULT_PAGES, machine.page),
        "FAULT_COUNTERS": FAULT_COUNTERS,
        "AUXV_WORDS": AUXV_WORDS,
        "PATH_NAMES": PATH_NAMES,
        "NAME_SLOT": NAME_SLOT,
        "CODE_REST_NS": CODE_REST_NS,
        "STACK_BYTES": sizes.stack_bytes,
        "SIGNATURE_WORDS": SIGNATURE_WORDS,
        "CLONE_SIGNATURE_WORDS": CLONE_SIGNATURE_WORDS,
        "COPIES_PER_SECOND": sizes.copies_per_second,
        "FRESH_COPIES_PER_SECOND": sizes.fresh_copies_per_second,
        "SITE_COPIES": sizes.site_copies,
        "HASH_FLAGS": 0 if preallocated else BPF_F_NO_PREALLOC,
        "IMAGES": IMAGES,
        "SIZE_UNKNOWN": SIZE_UNKNOWN,
        "PYTHON_FRAMES": PYTHON_FRAMES,
        "ARGUMENT_WORDS": ARGUMENT_WORDS,
        "PYTHON_THREADS": PYTHON_THREADS,
        "NAME_BYTES": NAME_BYTES,
    }
    constants.update({f"EVENT_{kind.name}": int(kind) for kind in EventKind})
    return constants
