# SPDX-License-Identifier: Apache-2.0
"""The addresses of glibc's lists of thread stacks in one process, and the layout of its thread descriptor.

glibc describes its internals for debuggers (``nptl_db/structs.def``): symbols ``_thread_db_*``, each three
u32 (bits, count, offset).  Since 2.34 they are exported from libc.so.6; before, and in static programs, they
are in ``.symtab``.  Fields without a description are derived from described ones, and checked against the
memory of the process.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple, Optional, Union

from ebpftrace.model import NO_LIBC_BUT_GO, Vma
from ebpftrace.nptl.symbols import Image, file_mappings, read_image
from ebpftrace.procfs.files import CannotOpen, open_mapped_file
from ebpftrace.procfs.memory import Readable
from ebpftrace.vmas import Vmas

_DB = "_thread_db_"
_FIELDS = (
    "pthread_list",
    "pthread_tid",
    "pthread_cancelhandling",
    "pthread_schedparam_sched_priority",
    "pthread_start_routine",
    "pthread_nextevent",
    "list_t_next",
    "list_t_prev",
)
ROOT_FIELDS = ("rtld_global__dl_stack_used", "rtld_global__dl_stack_user")
_SIZEOF_PTHREAD = _DB + "sizeof_pthread"
_VERSION = ("__nptl_version", "nptl_version")
ROOT = "__nptl_rtld_global"
USED = ("_dl_stack_used", "stack_used")
USER = ("_dl_stack_user", "__stack_user")
_CACHE = ("_dl_stack_cache", "stack_cache")
_CACHE_SIZE = ("_dl_stack_cache_actsize", "stack_cache_actsize")
_CACHE_LIMIT = ("__nptl_stack_cache_maxsize", "stack_cache_maxsize")
SYMBOLS = frozenset(
    [_DB + name for name in (*_FIELDS, *ROOT_FIELDS)]
    + [_SIZEOF_PTHREAD, ROOT, *_VERSION, *USED, *USER, *_CACHE, *_CACHE_SIZE, *_CACHE_LIMIT]
)

LIBRARY = re.compile(r"lib(c|pthread)[.-]")
MUSL = re.compile(r"/(ld-musl-|libc\.musl-)|musl[^/]*/libc\.so$")
"""Some distributions name the file after the loader, others after the library."""
_LOADER = re.compile(r"ld(64)?[.-]")
_MAX_FILES = 4
"""Executable mappings to search in a process without a file named like a libc; static programs have one."""
_MAX_PTHREAD = 1 << 16
_JOIN_GAP = 28
"""Bytes before ``schedparam`` for setxid_futex, joinid or joinstate, and result (nptl/descr.h)."""
_LIST_HEAD_SIZE = 16
_GO_MAGIC = b"\xff Go buildinf:"
_GO_SEARCHED = 64 << 10
"""Bytes at the start of a Go program's data that contain the magic (Go debug/buildinfo/buildinfo.go)."""


@dataclass(frozen=True)
class Layout:
    """Offsets in ``struct pthread`` (glibc ``nptl/descr.h``), in bytes."""

    size: int
    link: int
    next: int
    prev: int
    tid: int
    cancelhandling: int
    sched_priority: int
    start_routine: int
    next_event: int


@dataclass(frozen=True)
class Lists:
    """Addresses of the list heads (``list_t``) in one process, and the layout that reading them takes."""

    version: tuple[int, int]
    static: bool
    order: str
    """Byte order as ``struct`` writes it."""
    layout: Layout
    used: int
    user: int
    cache: Optional[int]
    cache_size: Optional[int]
    cache_limit: Optional[int]

    @property
    def name(self) -> str:
        """Such as "glibc 2.36"."""
        text = f"glibc {self.version[0]}.{self.version[1]}"
        return f"static {text}" if self.static else text


@dataclass(frozen=True)
class Absent:
    """The process has no thread lists; ``why`` is one line, to be printed after a colon."""

    why: str
    libc: str = ""


class LibcFiles(NamedTuple):
    """Executable mappings of a process that may contain a libc."""

    libraries: list[Vma]
    """Mappings named like a libc; libpthread, which has the lists before glibc 2.34, comes first."""
    programs: list[Vma]
    """Mappings to search if there is no library of that name."""
    is_static: bool
    """The process has neither such a library nor a dynamic loader."""
    has_musl: bool


def libc_files(vmas: Vmas) -> LibcFiles:
    """Find the mappings that may contain a libc by the names of the mapped files."""
    files = file_mappings(vmas)
    names = [PurePosixPath(vma.path).name for vma in files]
    libraries = [vma for vma, name in zip(files, names) if LIBRARY.match(name)]
    libraries.sort(key=lambda vma: "pthread" not in PurePosixPath(vma.path).name)
    is_static = not libraries and not any(_LOADER.match(name) for name in names)
    has_musl = any(MUSL.search(vma.path) for vma in files)
    return LibcFiles(libraries, files[:_MAX_FILES], is_static, has_musl)


def find_lists(pid: int, vmas: Vmas, memory: Readable) -> Union[Lists, Absent]:
    """Find glibc's lists in process ``pid``.  Raises ``ProcessGone`` or ``CannotTrace``."""
    refusals: list[str] = []
    libraries, programs, static, has_musl = libc_files(vmas)
    if has_musl:
        return Absent("musl keeps no list of threads that exited", "musl")
    for vma in libraries[:_MAX_FILES] or programs:
        try:
            fd = open_mapped_file(pid, vma)
        except CannotOpen as refusal:
            refusals.append(refusal.what)
            continue
        with os.fdopen(fd, "rb") as file:
            image = read_image(file, SYMBOLS)
        if image is None or not any(name in image.symbols for name in (*USED, ROOT)):
            continue
        found = lists_of_image(image, vma, memory, static)
        if found is not None:
            return found
    if not libraries and _is_go(vmas, memory):
        return Absent("a Go program without a C library", NO_LIBC_BUT_GO)
    if refusals:
        return Absent(refusals[0])
    if static:
        return Absent("a static program without symbols of glibc's thread lists (stripped, or not glibc)")
    return Absent("the C library has no symbols of glibc's thread lists, or they could not be read")


def _is_go(vmas: Vmas, memory: Readable) -> bool:
    """Whether the data of the program begins with what Go's linker stores there (Go debug/buildinfo)."""
    for position, kind in enumerate(vmas.kinds):
        if kind.inode and kind.perms.startswith("rw"):
            start, end = vmas.starts[position], vmas.ends[position]
            try:
                return _GO_MAGIC in memory.read(start, min(_GO_SEARCHED, end - start))
            except OSError:
                return False
    return False


def lists_of_image(image: Image, vma: Vma, memory: Readable, static: bool) -> Optional[Lists]:
    """The lists of the glibc in ``image``, one mapping of which is ``vma``; None if it is not a glibc."""
    bias = image.bias(vma)
    if bias is None:
        return None
    symbols = Symbols(image, bias, memory)
    try:
        version = symbols.version()
        layout = symbols.layout()
        root = symbols.root()
        used, user = (symbols.address(*names) for names in (USED, USER))
        if root is not None:
            used = used or root + symbols.offset(ROOT_FIELDS[0])
            # 2.33 has the list of used stacks in ld.so and describes only that one.
            user = user or root + symbols.offset(ROOT_FIELDS[1])
        if used is None or user is None:
            return None
        cache, cache_size = symbols.address(*_CACHE), symbols.address(*_CACHE_SIZE)
        if cache is None and user == used + _LIST_HEAD_SIZE and version >= (2, 34):
            # In struct rtld_global of 2.34 to 2.43 the list of the cache and its size come next (glibc
            # sysdeps/generic/ldsodefs.h); the reader of the cache checks that they agree with each other.
            cache = user + _LIST_HEAD_SIZE
            cache_size = cache + _LIST_HEAD_SIZE
        limit = symbols.address(*_CACHE_LIMIT)
    except (OSError, UnsoundError):
        return None
    return Lists(version, static, image.order, layout, used, user, cache, cache_size, limit)


class UnsoundError(Exception):
    """The descriptions contradict each other."""


class Symbols:
    """The symbols of one loaded image, and the values at their addresses."""

    def __init__(self, image: Image, bias: int, memory: Readable) -> None:
        self._image = image
        self._bias = bias
        self._memory = memory

    def address(self, *names: str) -> Optional[int]:
        """Address of the first of these symbols that exists; None if none does."""
        for name in names:
            if name in self._image.symbols:
                return (self._image.symbols[name] + self._bias) % (1 << 64)
        return None

    def _need(self, *names: str) -> int:
        address = self.address(*names)
        if address is None:
            raise UnsoundError(names[0])
        return address

    def root(self) -> Optional[int]:
        """Address of ``_rtld_global``, to which libc keeps a pointer for debuggers."""
        address = self.address(ROOT)
        if address is None:
            return None
        (pointer,) = struct.unpack(self._image.order + "Q", self._memory.read(address, 8))
        return int(pointer) or None

    def version(self) -> tuple[int, int]:
        """The version, such as (2, 36); glibc's text may have more parts, as in 2.42.9000."""
        text = self._memory.read(self._need(*_VERSION), 8)
        match = re.match(rb"(\d)\.(\d{1,3})[.\0]", text)
        if not match:
            raise UnsoundError("version")
        return int(match[1]), int(match[2])

    def offset(self, name: str) -> int:
        """The offset that descriptor ``name`` gives; it is bits, count, offset (nptl_db/db_info.c)."""
        raw = self._memory.read(self._need(_DB + name), 12)
        _, _, offset = struct.unpack(self._image.order + "3I", raw)
        if offset >= _MAX_PTHREAD:
            raise UnsoundError(name)
        return int(offset)

    def layout(self) -> Layout:
        """Offsets in struct pthread."""
        size_raw = self._memory.read(self._need(_SIZEOF_PTHREAD), 4)
        (size,) = struct.unpack(self._image.order + "I", size_raw)
        link, tid, cancel, priority, start, event, forward, back = (self.offset(name) for name in _FIELDS)
        if not (
            {forward, back} == {0, 8}
            and link + _LIST_HEAD_SIZE <= tid
            and tid + 4 <= cancel
            and cancel + 4 + _JOIN_GAP <= priority
            and priority + 4 <= start
            and start + 8 <= event
            and event + 8 <= size <= _MAX_PTHREAD
        ):
            raise UnsoundError("layout")
        return Layout(size, link, forward, back, tid, cancel, priority, start, event)
