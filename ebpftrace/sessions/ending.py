# SPDX-License-Identifier: Apache-2.0
"""The end of an address space: glibc's lists as the BPF programs read them in the dying task."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import BinaryIO, Optional, Union

from ebpftrace.capture.cache import cached_or_made
from ebpftrace.capture.kernel_events import Awaited, ImageExecuted, ListedAtEnd, Walked
from ebpftrace.capture.tracer import Tracer
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Interval, ReadState, Thread, ThreadLists, ThreadStart, Vma
from ebpftrace.nptl.final import LibcFile, Listed, final_lists, read_libc_file
from ebpftrace.nptl.lists import LIBRARY, MUSL, SYMBOLS, libc_files
from ebpftrace.nptl.symbols import Image, is_fixed, read_image, read_interpreter
from ebpftrace.procfs.files import (
    FileKey,
    file_key,
    is_file,
    key_by_mount,
    key_of,
    names,
    open_mapped_file,
)
from ebpftrace.procfs.maps import read_maps
from ebpftrace.vmas import Vmas

EndEvent = Union[ListedAtEnd, Walked, Awaited]

_MAX_KEPT = 1 << 18
"""Threads of one walk, and futexes, that are stored: more than a process can have stacks by default."""


def _image_of_ours(file: BinaryIO) -> Optional[Image]:
    """The symbols of our own libc, cached: each trace needs them, and reading them takes 0.1 s of CPU."""
    status = os.fstat(file.fileno())
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return cached_or_made(
        repr(("symbols", identity, sorted(SYMBOLS))),
        Image.from_bytes,
        lambda: read_image(file, SYMBOLS),
        Image.to_bytes,
    )


class Libcs:
    """The libcs found so far, by their files: each file is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Optional[LibcFile]] = {}

    def preload_own(self, tracer: Tracer) -> None:
        """Let the BPF programs recognise the libc of this process, which most programs use."""
        pid = os.getpid()
        for vma in libc_files(read_maps(pid)).libraries:
            self.find(pid, vma, tracer, is_ours=True)

    def known(self, file: FileKey) -> Optional[LibcFile]:
        """Return the libc in this file, if it was found already."""
        return self._known.get((file.device, file.inode))

    def find_in_program(self, path: str, tracer: Tracer) -> Optional[tuple[FileKey, LibcFile]]:
        """Return the libc in a program that has not begun; None if it has none, or no fixed address."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return None
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            # Most programs have no fixed address: reading their symbols would waste 0.1 s of CPU.
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
        """Return the libc that process ``pid`` has mapped there; None if it is none, or cannot be read.

        ``static``: the libc may be part of the program.
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
                mounted = key_by_mount(handle, vma.path)
            if libc is not None:
                tracer.know_libc(file_key(vma), libc)
            if libc is not None and mounted is not None and (mounted.device, mounted.inode) != place:
                self._known[mounted.device, mounted.inode] = libc
                tracer.know_libc(mounted, libc)
        return self._known[place]


class Ending:
    """Collects the events at the end of one address space; ``final`` makes thread lists of them."""

    def __init__(self, pid: int, libcs: Libcs) -> None:
        self._pid = pid
        self._libcs = libcs
        self._libc: Optional[LibcFile] = None
        self._is_musl = False
        self._listed: list[Listed] = []
        self._walk = -1
        """The walk that ``_listed`` comes from."""
        self._walked: Optional[Walked] = None
        self.awaited: set[int] = set()
        """Futexes that threads waited for when they died."""

    @property
    def at(self) -> Optional[int]:
        """When the first sign of the end was seen, in ns of CLOCK_MONOTONIC; None if none was."""
        return self._walked.ended_at if self._walked is not None else None

    @property
    def knows_libc(self) -> bool:
        """The BPF programs know the glibc of the process, or it has none."""
        return self._libc is not None or self._is_musl

    def begins(self, program: str, space: int, tracer: Tracer) -> None:
        """Find the libc in a program that is about to begin: a static one maps none, and may end at once."""
        found = self._libcs.find_in_program(program, tracer)
        if found is not None:
            key, self._libc = found
            tracer.set_libc(space, key, self._libc, 0)

    def find_libc(self, vmas: Vmas, space: int, tracer: Tracer) -> None:
        """Find the libc of a running process for the BPF programs."""
        libraries, programs, is_static, has_musl = libc_files(vmas)
        self._is_musl |= has_musl
        for vma in programs if is_static else libraries:
            libc = self._libcs.find(self._pid, vma, tracer, is_static)
            base = libc.image.bias(vma) if libc is not None else None
            if libc is not None and base is not None:
                self._libc = libc
                tracer.set_libc(space, file_key(vma), libc, base)

    def executed(self, event: ImageExecuted) -> None:
        """Find out whether the program is linked with musl, which the kernel maps as the interpreter."""
        interpreter = _interpreter(self._pid, event.file)
        self._is_musl = interpreter is not None and MUSL.search(interpreter) is not None

    def mapped(self, key: FileKey, vma: Vma, space: int, tracer: Tracer) -> None:
        """Note a mapped library; a libc that the BPF programs do not know yet is sent to them."""
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
        """Store an event of the end."""
        if isinstance(event, Awaited):
            if len(self.awaited) < _MAX_KEPT:
                self.awaited.add(event.address)
        elif isinstance(event, Walked):
            self._walked = event
        else:
            if event.walk != self._walk:
                self._walk, self._listed = event.walk, []
            if len(self._listed) < _MAX_KEPT:
                self._listed.append(event.thread)

    def final(
        self, runs: Sequence[ThreadStart], threads: Iterable[Thread], earlier: Optional[ThreadLists]
    ) -> ThreadLists:
        """Return the thread lists at the end; UNSTABLE or ABSENT if they could not be read.

        ``runs`` and ``threads`` come from the trace; ``earlier`` are the thread lists at attach.
        """
        if self._is_musl:
            return ThreadLists(ReadState.ABSENT, "musl keeps no list of threads that exited", libc="musl")
        if self._walked is None:
            return ThreadLists(ReadState.ABSENT, "the end of the process was not seen")
        if self._libc is None or not self._walked.complete:
            return ThreadLists(ReadState.ABSENT, self._walked.why or "no glibc was seen in the process")
        listed = self._listed if self._walk == self._walked.walk else []
        if len(listed) != self._walked.sent:
            why = f"{self._walked.sent - len(listed)} exited threads could not be reported at the end"
            return ThreadLists(ReadState.UNSTABLE, why)
        exits = _Exits(runs, threads, earlier)
        return final_lists(self._libc, listed, self.awaited, exits.had_exited)


class _Exits:
    """Finds by descriptor and stack whether a thread had exited before the process began to end."""

    def __init__(
        self, runs: Sequence[ThreadStart], threads: Iterable[Thread], earlier: Optional[ThreadLists]
    ) -> None:
        self._runs = sorted(runs, key=lambda run: run.stack_byte)
        self._starts = [run.stack_byte for run in self._runs]
        self._before = {thread.id.tid: thread for thread in threads if thread.before_attach}
        self._earlier = {one.descriptor: one for one in earlier.threads} if earlier is not None else {}

    def had_exited(self, descriptor: int, stack: Interval) -> Optional[bool]:
        """Return None if the trace does not know that thread."""
        first = bisect_left(self._starts, stack.start)
        last = bisect_left(self._starts, stack.end)
        on_it = self._runs[first:last]
        if on_it:
            return max(on_it, key=lambda run: run.thread.started_at).exited_at is not None
        earlier = self._earlier.get(descriptor)
        if earlier is None:
            return None
        if earlier.exited:
            return True
        thread = self._before.get(earlier.tid)
        return None if thread is None else not thread.alive


def _interpreter(pid: int, file: FileKey) -> Optional[str]:
    """Return the dynamic loader of a program that may have ended; None if its file is not found."""
    for root in (f"/proc/{pid}/root", ""):
        for name in names(file.path):
            with suppress(OSError):
                handle = os.open(root + name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
                with os.fdopen(handle, "rb") as opened:
                    if is_file(handle, file):
                        return read_interpreter(opened)
    return None
