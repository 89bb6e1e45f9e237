# SPDX-License-Identifier: Apache-2.0
"""The end of an address space: what the kernel side read of glibc's lists in the dying task, put together."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import BinaryIO, Optional, Union

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel.cache import kept
from ebpftrace.kernel.tracer import Awaited, ImageExecuted, ListedAtEnd, Tracer, Walked
from ebpftrace.model import Books, BooksState, Interval, Run, Thread, Vma
from ebpftrace.process.books.final import LibcFile, Listed, final_books, read_libc_file
from ebpftrace.process.books.lists import LIBRARY, MUSL, SYMBOLS, libc_files
from ebpftrace.process.books.symbols import Image, is_fixed, read_image, read_interpreter
from ebpftrace.process.files import FileKey, file_key, is_file, key_of, names, open_mapped_file
from ebpftrace.process.maps import read_maps
from ebpftrace.vmas import Vmas

EndEvent = Union[ListedAtEnd, Walked, Awaited]

_MOST_KEPT = 1 << 18
"""Threads of one walk, and futexes, that are kept: more than a process can have stacks for by default."""


def _image_of_ours(file: BinaryIO) -> Optional[Image]:
    """Of the libc that runs this very program: each trace needs it, and reading it takes 0.1 s of CPU."""
    status = os.fstat(file.fileno())
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return kept(
        repr(("symbols", identity, sorted(SYMBOLS))),
        Image.from_bytes,
        lambda: read_image(file, SYMBOLS),
        Image.to_bytes,
    )


class Libcs:
    """The libcs met so far, by their files: each file is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Optional[LibcFile]] = {}

    def meet_own(self, tracer: Tracer) -> None:
        """Have the kernel side recognise the libc of this very process: most programs have the same."""
        pid = os.getpid()
        for vma in libc_files(read_maps(pid)).libraries:
            self.find(pid, vma, tracer, is_ours=True)

    def known(self, file: FileKey) -> Optional[LibcFile]:
        """The libc in this file, if it was met."""
        return self._known.get((file.device, file.inode))

    def find_in_program(self, path: str, tracer: Tracer) -> Optional[tuple[FileKey, LibcFile]]:
        """The libc in a program that has not begun; None where it has none, or may lie anywhere."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return None
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            # Most are loaded anywhere: reading their symbols would take 0.1 s of CPU for nothing.
            if not stat.S_ISREG(status.st_mode) or not is_fixed(file):
                return None
            libc = read_libc_file(file, static=True)
        if libc is None or not libc.image.is_fixed:
            return None
        key = key_of(status, path)
        tracer.know_libc(key, libc)
        return key, libc

    def find(
        self, pid: int, vma: Vma, tracer: Tracer, static: bool = False, is_ours: bool = False
    ) -> Optional[LibcFile]:
        """The libc that process ``pid`` has mapped there; None for what is none, or cannot be read.

        ``static``: it may be in the program.
        """
        place = vma.device, vma.inode
        if place not in self._known:
            try:
                handle = open_mapped_file(pid, vma)
            except CannotTrace:
                return None
            with os.fdopen(handle, "rb") as file:
                image = _image_of_ours(file) if is_ours else None
                libc = self._known[place] = read_libc_file(file, static, image)
            if libc is not None:
                tracer.know_libc(file_key(vma), libc)
        return self._known[place]


class Ending:
    """What is known of the end of one address space; ``final`` makes books of it."""

    def __init__(self, pid: int, libcs: Libcs) -> None:
        self._pid = pid
        self._libcs = libcs
        self._libc: Optional[LibcFile] = None
        self._is_musl = False
        self._listed: list[Listed] = []
        self._walk = -1
        """Which walk these are of."""
        self._walked: Optional[Walked] = None
        self.awaited: set[int] = set()
        """Futexes that threads slept at when they died."""

    @property
    def at(self) -> Optional[int]:
        """First sign of the end, in ns of CLOCK_MONOTONIC; None where none was seen."""
        return self._walked.ended_at if self._walked is not None else None

    @property
    def knows_libc(self) -> bool:
        """The kernel side knows the glibc of the process, or there is none."""
        return self._libc is not None or self._is_musl

    def begins(self, program: str, space: int, tracer: Tracer) -> None:
        """Find the libc in a program that is about to begin: a static one maps none, and may end at once."""
        found = self._libcs.find_in_program(program, tracer)
        if found is not None:
            key, self._libc = found
            tracer.set_libc(space, key, self._libc, 0)

    def look(self, vmas: Vmas, space: int, tracer: Tracer) -> None:
        """Find the libc of a process that runs, and tell the kernel side."""
        libraries, programs, is_static, has_musl = libc_files(vmas)
        self._is_musl |= has_musl
        for vma in programs if is_static else libraries:
            libc = self._libcs.find(self._pid, vma, tracer, is_static)
            base = libc.image.bias(vma) if libc is not None else None
            if libc is not None and base is not None:
                self._libc = libc
                tracer.set_libc(space, file_key(vma), libc, base)

    def executed(self, event: ImageExecuted) -> None:
        """Take in which program it is: one that is linked with musl maps no libc by a call of its own."""
        interpreter = _interpreter(self._pid, event.file)
        self._is_musl = interpreter is not None and MUSL.search(interpreter) is not None

    def mapped(self, key: FileKey, vma: Vma, space: int, tracer: Tracer) -> None:
        """Take in a library; the kernel side knows it already, or is told now."""
        if self._libc is not None or not LIBRARY.match(PurePosixPath(vma.path).name):
            return
        self._libc = self._libcs.known(key)
        if self._libc is None:
            libc = self._libcs.find(self._pid, vma, tracer)
            base = libc.image.bias(vma) if libc is not None else None
            if libc is not None and base is not None:
                self._libc = libc
                tracer.set_libc(space, key, libc, base)

    def handle(self, event: EndEvent) -> None:
        """Take in what the kernel side tells of the end."""
        if isinstance(event, Awaited):
            if len(self.awaited) < _MOST_KEPT:
                self.awaited.add(event.address)
        elif isinstance(event, Walked):
            self._walked = event
        else:
            if event.walk != self._walk:
                self._walk, self._listed = event.walk, []
            if len(self._listed) < _MOST_KEPT:
                self._listed.append(event.thread)

    def final(self, runs: Sequence[Run], threads: Iterable[Thread], earlier: Optional[Books]) -> Books:
        """The books of its last moment; UNSTABLE or ABSENT where they could not be read.

        ``runs`` and ``threads`` are what the trace knows; ``earlier`` the books at attach.
        """
        if self._is_musl:
            return Books(BooksState.ABSENT, "musl keeps no list of threads that exited", libc="musl")
        if self._walked is None:
            return Books(BooksState.ABSENT, "the end of the process was not seen")
        if self._libc is None or not self._walked.complete:
            return Books(BooksState.ABSENT, self._walked.why or "no glibc was seen in the process")
        listed = self._listed if self._walk == self._walked.walk else []
        if len(listed) != self._walked.sent:
            why = f"{self._walked.sent - len(listed)} exited threads could not be reported at the end"
            return Books(BooksState.UNSTABLE, why)
        exits = _Exits(runs, threads, earlier)
        return final_books(self._libc, listed, self.awaited, exits.had_exited)


class _Exits:
    """Who had exited before the process began to end, by descriptor and stack."""

    def __init__(self, runs: Sequence[Run], threads: Iterable[Thread], earlier: Optional[Books]) -> None:
        self._runs = sorted(runs, key=lambda run: run.stack_byte)
        self._starts = [run.stack_byte for run in self._runs]
        self._before = {thread.id.tid: thread for thread in threads if thread.before_attach}
        self._earlier = {one.descriptor: one for one in earlier.threads} if earlier is not None else {}

    def had_exited(self, descriptor: int, stack: Interval) -> Optional[bool]:
        """None where the trace knows nothing of that thread."""
        first = bisect_left(self._starts, stack.start)
        last = bisect_left(self._starts, stack.end)
        on_it = self._runs[first:last]
        if on_it:
            return max(on_it, key=lambda run: run.thread.born).exited_at is not None
        earlier = self._earlier.get(descriptor)
        if earlier is None:
            return None
        if earlier.exited:
            return True
        thread = self._before.get(earlier.tid)
        return None if thread is None else not thread.alive


def _interpreter(pid: int, file: FileKey) -> Optional[str]:
    """The dynamic loader of a program that may have ended; None where its file is not to be found."""
    for root in (f"/proc/{pid}/root", ""):
        for name in names(file.path):
            with suppress(OSError):
                handle = os.open(root + name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
                with os.fdopen(handle, "rb") as opened:
                    if is_file(handle, file):
                        return read_interpreter(opened)
    return None
