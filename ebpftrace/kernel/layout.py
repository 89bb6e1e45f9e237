# SPDX-License-Identifier: Apache-2.0
"""What the kernel side and Python agree on: the structs of ``bpf/shared.h`` and their constants.

The constants reach the C as ``-D`` definitions (``definitions``), so each stands here only.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Optional

from ebpftrace.model import SIZE_UNKNOWN
from ebpftrace.syscalls import MAX_ERRNO

NAME_BYTES = 16
CALLS = ("mmap", "munmap", "mremap", "brk", "clone", "thread_exit", "fork")
IMAGES = 4
ADDRESS_BITS = 56
"""User addresses of x86-64 and arm64 stay below 2**56 (5-level page tables, LVA)."""
_LEAST_PAGE_SHIFT = 12
SPACE_SHIFT = ADDRESS_BITS - _LEAST_PAGE_SHIFT
"""Where the number of the address space begins in the key of a mapping; below is the number of its page."""
MAX_SPACES = 1024
"""Address spaces at once; those of processes that have ended are used again."""
NO_SPACE = 0xFFFF
"""Of a process that is followed, and has no number because it has created no thread."""
LOST_SPACE = 0xFFFE
"""Of one that created a thread when there was no number left: it is not followed any more."""
MAX_LIBCS = 1024
"""Files of libcs, of all that is traced: containers have their own."""
SIGNATURE_WORDS = 64
CLONE_SIGNATURE_WORDS = 128
"""Words of the stack that go into the signature of a call, and of a clone call; at most a page."""
KEEPERS = 1024
"""Newest mappings of which the kernel side can tell who keeps them; a power of two."""
RUNNERS = 8192
"""Stacks of which the kernel side can tell whom they were given to; a power of two."""
PLACES = 16_384
"""Places of address spaces of which the kernel side keeps when they were touched; a power of two."""
SMALL_SHIFT, LARGE_SHIFT = 19 - _LEAST_PAGE_SHIFT, 26 - _LEAST_PAGE_SHIFT
"""Of keys: a small place has 512 KiB, a large one 64 MiB.  What lies in more than two small ones is noted by
large ones; what lies in more than two of these, as touching all."""
SMALL_PAGES = 64
"""Of a row, at most, for the kernel side to look for others inside it when it is unmapped."""
REGISTER_BYTES = {"x86_64": 168, "aarch64": 288}
"""Size of ``struct pt_regs`` in ``bpf/include/uapi/linux/ptrace.h``."""
AUXV_WORDS = 32
"""Of the auxiliary vector of a program: what says where it lies is among the first twelve entries
(fs/binfmt_elf.c, create_elf_tables)."""
PATH_NAMES = 24
"""How deep a file may lie, mount points included, for its path to be told."""
NAME_SLOT = 256
"""NAME_MAX (include/uapi/linux/limits.h) and the zero byte."""
CODE_REST_NS = 100_000_000
"""The kernel side tells of executable memory no more often than this."""
_MAX_PID_LEVEL = 32
"""How deep PID namespaces nest (include/linux/pid_namespace.h)."""


UNSEEN_SITE = 1
"""Signature of a mapping whose call nobody looked at: its process had created no thread yet."""


def key_of(space: int, address: int) -> int:
    """The key of a mapping."""
    return address >> _LEAST_PAGE_SHIFT | space << SPACE_SHIFT


def address_of(key: int) -> int:
    """Where the mapping with this key begins."""
    return (key & (1 << SPACE_SHIFT) - 1) << _LEAST_PAGE_SHIFT


class EventKind(IntEnum):
    """Kinds of ``struct event_t``."""

    HOLE = 1
    DISPLACED = 2
    MOVE = 3
    EXEC = 4
    CODE = 5
    FAILED = 6
    LISTED = 7
    WALKED = 8
    AWAITED = 9
    SETTLED = 10


class CallKind(IntEnum):
    """``enum call``: which call a stack was copied at."""

    MMAP = 0
    MUNMAP = 1
    MREMAP = 2
    BRK = 3
    CLONE = 4
    THREAD_EXIT = 5
    FORK = 6


_u8, _u32, _u64, _s64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64
_name = ctypes.c_char * NAME_BYTES


class MappingT(ctypes.Structure):
    """``struct mapping_t``: one row of the ledger."""

    _fields_ = (
        ("length", _u64),
        ("since", _u64),
        ("made_at", _u64),
        ("mapper_born", _u64),
        ("site", _u64),
        ("mapper_tid", _u32),
        ("prot", _u32),
        ("flags", _u32),
        ("is_stack", _u32),
    )


MAPPING = struct.Struct("=5Q4I")
"""``MappingT`` for reading many at once."""


class NewestT(ctypes.Structure):
    """``struct newest_t``: the mapping a thread made last, which is not among the rows yet."""

    _fields_ = (("key", _u64), ("row", MappingT), ("check", _u64))


NEWEST_WORDS = struct.Struct("=9Q")
"""``NewestT`` as words ..."""
CHECK_WEIGHTS = (1, 3, 5, 7, 9, 11, 13, 15)
"""... whose weighted sum modulo 2**64 is the last one."""


class LifeT(ctypes.Structure):
    """``struct life_t``: the life of one task in a traced address space."""

    _fields_ = (
        ("born", _u64),
        ("exited_at", _u64),
        ("outstanding", _s64),
        ("brk_growth", _s64),
        ("stack", _u64),
        ("tid", _u32),
        ("space", _u32),
        ("name", _name),
        ("stack_size", _u64),
        ("site", _u64),
        ("creator_born", _u64),
        ("creator_tid", _u32),
        ("tgid", _u32),
        ("creator_name", _name),
        ("creator_sp", _u64),
        ("stood", _u64),
        ("stood_at", _u64),
        ("is_thread", _u32),
        ("dies_with", _u32),
    )


class LibcKeyT(ctypes.Structure):
    """``struct libc_key_t``: names the file of a libc."""

    _fields_ = (("inode", _u64), ("device", _u32), ("reserved", _u32))


class ThreadT(ctypes.Structure):
    """``struct thread_t``: a live task, or one that exited and whose stack may stand."""

    _fields_ = (
        ("life", LifeT),
        ("waits_for_exec", _u32),
        ("has_called", _u32),
        ("calls", _u64 * len(CALLS)),
        ("entered_at", _u64),
        ("row", MappingT),
        ("has_row", _u32),
        ("is_hard", _u32),
        ("entered", _u32),
        ("shares", _u32),
        ("failures_from", _u64),
        ("failures_told", _u64),
        ("image", _u32),
        ("reserved", _u32),
        ("libc", LibcKeyT),
        ("libc_base", _u64),
        ("newest", NewestT),
    )


class LifeKeyT(ctypes.Structure):
    """``struct life_key_t``: names an exited thread."""

    _fields_ = (("born", _u64), ("tid", _u32), ("reserved", _u32))


class RangeT(ctypes.Structure):
    """``struct range_t``."""

    _fields_ = (("start", _u64), ("end", _u64))


PYTHON_FIELDS = (
    *("interpreters", "threads", "next_thread", "thread_id", "frame", "by_c_frame", "of_c_frame"),
    *("code", "instruction", "kind", "caller"),
)


class PythonT(ctypes.Structure):
    """``struct python_t``: where CPython keeps the frames of a thread; see ``process.cpython``."""

    _fields_ = tuple((name, _u64) for name in PYTHON_FIELDS)


class ToldT(ctypes.Structure):
    """``struct told_t``: what Python tells the kernel side of an address space."""

    _fields_ = (
        ("code", RangeT * IMAGES),
        ("all_code", RangeT),
        ("baseline_at", _u64),
        ("python", PythonT),
    )


class TouchedT(ctypes.Structure):
    """``struct touched_t``."""

    _fields_ = (("hard_at", _u64), ("moved_at", _u64))


class SpaceT(ctypes.Structure):
    """``struct space_t``: one traced address space."""

    _fields_ = (
        ("latest", TouchedT),
        ("everywhere", TouchedT),
        ("brk", _u64),
        ("code_at", _u64),
        ("settled_at", _u64),
        ("reserved", _u64 * 1),
        ("calls", _u64 * len(CALLS)),
        ("lost_events", _u64),
        ("lost_mappings", _u64),
        ("lost_threads", _u64),
        ("lost_runs", _u64),
    )


class LibcT(ctypes.Structure):
    """``struct libc_t``: what must be known of a glibc to walk its lists."""

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
    born: int
    tgid: int
    image: int
    name: bytes


class CallEvent(NamedTuple):
    """``struct event_t`` of every kind but DISPLACED."""

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
    """``struct event_t`` of kind DISPLACED."""

    kind: int
    space: int
    tid: int
    since: int
    made_at: int
    start: int
    length: int
    mapper_born: int
    site: int
    prot: int
    flags: int


CALL_EVENT = struct.Struct("=HHI7Q")
ROW_EVENT = struct.Struct("=HHI6QII")
SETTLED_EVENT = struct.Struct(f"=HHI2QII{NAME_BYTES}s16x")
LISTED_EVENT = struct.Struct("=HHI5QiIII")


class SiteT(ctypes.Structure):
    """``struct site_t``: copies of a site's stack, how far its calls moved the break, and how many did."""

    _fields_ = (("copies", _u64), ("brk_growth", _s64), ("brk_calls", _u64))


class CountT(ctypes.Structure):
    """A number that is the whole leaf of a table."""

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


COPY_HEAD = struct.Struct("=QQ8I")
ARGUMENT_WORDS = 10
"""Of what a thread's start routine is given the address of, from the one before it on."""
COPY_ARGUMENT = struct.Struct(f"={ARGUMENT_WORDS}Q")
PYTHON_FRAME = struct.Struct("=3Q")
"""``struct python_frame_t``"""
PYTHON_FRAMES = 24
"""Frames of Python code that are recorded of a call, the innermost ones."""
PYTHON_THREADS = 256
"""Threads of an interpreter that are looked through for the one that calls, the youngest first."""


class ImageHead(NamedTuple):
    """``struct image_t`` up to the auxiliary vector, which the names follow."""

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
}
"""Members whose offsets ``bpf/images.h`` must know, by the names that it has for them."""


PYTHON_OFFSETS = {"TASK_THREAD": ("task_struct", "thread"), "THREAD_FSBASE": ("thread_struct", "fsbase")}
"""Likewise for ``bpf/python.h``: where the thread pointer lies, which on x86_64 is fsbase."""


@dataclass(frozen=True)
class PidNamespaces:
    """How the kernel side finds what a PID namespace calls a task; offsets in bytes."""

    inode: int
    """Names the namespace."""
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
            "MAX_PID_LEVEL": _MAX_PID_LEVEL,
        }


@dataclass(frozen=True)
class Machine:
    """What the kernel side must know of this machine; bytes."""

    page: int
    huge_page: int
    cpus: int
    """That may be there: the kernel numbers them below this."""
    nr_clone: int
    nr_clone3: int
    nr_futex: int
    task_signal: int
    """``task_struct.signal``"""
    signal_flags: int
    """``signal_struct.flags``"""
    exit_has_memory: bool = False
    """A task that exits still has its memory when the tracepoint tells of it (Linux 6.16)."""
    has_prepare_exec: bool = False
    """There is a tracepoint between the last failure of an exec and the end of the old program (6.10)."""
    task_stack_offset: Optional[int] = None
    """Where ``task_struct.stack`` lies, on kernels without ``bpf_task_pt_regs`` (before 5.15)."""
    registers_offset: int = 0
    """Where ``struct pt_regs`` lies in that stack."""
    pids: Optional[PidNamespaces] = None
    """Where the tracer is in a PID namespace of its own; None: the kernel's own numbers are ours."""
    image_offsets: Mapping[str, int] = field(default_factory=dict)
    """``IMAGE_OFFSETS`` of this kernel; empty where it lacks one: then /proc alone says what is executed."""
    python_offsets: Mapping[str, int] = field(default_factory=dict)
    """``PYTHON_OFFSETS`` of this kernel; empty on other machines: then Python code is not told."""

    def definitions(self) -> dict[str, int]:
        """The constants of ``bpf/{call,pids}.h`` by name."""
        constants = {"PAGE_BYTES": self.page, "MAX_ERRNO": MAX_ERRNO}
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
    """Which processes that come from a traced one are traced too; each includes the ones above."""

    NOTHING = 0
    EXEC = 1
    """What it executes."""
    FORKS = 2
    """Its children."""


@dataclass(frozen=True)
class Sizes:
    """How much room each table gets; entries unless said otherwise."""

    mappings: int
    exited: int
    """Threads that exited and left mappings."""
    threads: int
    sites: int
    stack_bytes: int
    """How much of a stack is copied, at most; a multiple of the page size; 0 takes no stacks."""
    copies_per_second: int
    """Copies of stacks of known sites, for each CPU."""
    event_pages: int = 2048
    """Ring buffer of events, in pages; a power of two.  80 bytes an event."""
    copy_pages: int = 1024
    """Ring buffer of stack copies, in pages; a power of two."""
    image_pages: int = 128
    """Ring buffer of executed files, in pages; a power of two.  1.5 KiB a file of four directories."""
    fresh_copies_per_second: int = 1000
    """First copies of new sites, for each CPU."""
    site_copies: int = 4
    """Copies that count as first ones of a site."""
    follow: Follow = Follow.NOTHING
    """Which processes that come from a traced one are traced too."""


def signed_bytes(call: CallKind) -> int:
    """How many bytes of the stack, from its pointer on, go into the signature of a call."""
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
        "MAX_SPACES": MAX_SPACES,
        # Their sizes differ from target to target: the loader has them (loader.install_ledger).
        "MAX_MAPPINGS": 1,
        "MAX_EXITED": 1,
        "MAX_THREADS": 1,
        "MAX_SITES": 1,
        "KEEPERS": KEEPERS,
        "RUNNERS": RUNNERS,
        "PLACES": PLACES,
        "SMALL_SHIFT": SMALL_SHIFT,
        "LARGE_SHIFT": LARGE_SHIFT,
        "SMALL_PAGES": SMALL_PAGES,
        "EVENT_PAGES": sizes.event_pages,
        "COPY_PAGES": sizes.copy_pages,
        "IMAGE_PAGES": sizes.image_pages,
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
