# SPDX-License-Identifier: Apache-2.0
"""From the copies of one process to stacks with names: the one entry to this room."""

from __future__ import annotations

import os
import select
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Optional

from ebpftrace.defaults import MAX_STACK_BYTES
from ebpftrace.errors import CannotTrace
from ebpftrace.frames import name as frame_name
from ebpftrace.model import Frame, Stack, StackSource, Vma
from ebpftrace.process.files import FileKey
from ebpftrace.process.memory import Memory
from ebpftrace.process.procfs import read_small, through_live_task
from ebpftrace.stacks import cpython, goroots
from ebpftrace.stacks.copies import End, Pc, StackCopy, Unwound, Walk, is_native
from ebpftrace.stacks.engine import Engine
from ebpftrace.stacks.framepointers import frame_pointer_walk
from ebpftrace.stacks.madecode import MadeCode
from ebpftrace.stacks.modules import Layout, ModuleHistory
from ebpftrace.stacks.perfmap import JitNames, how_to_get
from ebpftrace.stacks.shortfalls import Bare, Shortfalls
from ebpftrace.stacks.startroutines import with_library_routine
from ebpftrace.text import size
from ebpftrace.wrappers import called_type, has_parameters

JIT = "[jit]"
"""Module of frames in executable memory without a file."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_WORD = 8
_MALLOC_FLAGS = 7
"""Low bits of the size of a block (glibc, malloc/malloc.c: SIZE_BITS)."""
NOTE_TRUNCATED = "cut where the copy of the stack ends (see --stack-bytes)"
NOTE_ABSENT = "cut at a page of the stack that was not in memory"
NOTE_OTHER_STACK = "cut: the callers are on another stack, of which there is no copy"
NOTE_GUESSED = "is a guess, by a frame pointer in code that could not be read"
NOTE_NO_FRAMES = "the registers are of no machine that is known here"


class StackResolver:
    """Unwinds and names the stacks of one process, also after it has exited.

    Create it while the process lives and ``refresh`` it when code is mapped or the process execs: files
    are opened then, and kept.  Raises CannotTrace nowhere: what cannot be known is left out and said in
    the stack's note, or in ``shortfalls``, which several resolvers may share.
    """

    def __init__(
        self, pid: int, engine: Engine, shortfalls: Optional[Shortfalls] = None, will_execute: bool = False
    ) -> None:
        """``will_execute``: what it runs now is not wanted, but what it will from ``executed`` on."""
        self.shortfalls = Shortfalls() if shortfalls is None else shortfalls
        self._pid = pid
        self._engine = engine
        self._handle = _pidfd(pid)
        self._root = _root(pid)
        self._own_root = _own_root()
        # Of a process that is gone, files are sought at their paths here; each is looked at whether it is it.
        root = self._own_root if self._root is None else self._root
        self._history = ModuleHistory(pid, engine.files, root)
        self._jit = None if self._root is None else JitNames(self._root, *_identity(pid))
        self._python: Optional[cpython.PythonCode] = None
        self._memory: Optional[Memory] = None
        self._made = MadeCode(pid)
        if not will_execute:
            self.refresh()

    def __enter__(self) -> StackResolver:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what belongs to this process; files stay with the engine."""
        self._made.close()
        for fd in (self._handle, self._root, self._own_root):
            if fd is not None:
                os.close(fd)
        self._handle = self._root = self._own_root = self._history.root = None
        if self._memory is not None:
            self._memory.close()

    @property
    def alive(self) -> bool:
        """The process we were made for still runs (its PID may be another's by now)."""
        if self._handle is None:
            return False
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return not poll.poll(0)

    def refresh(self, at: Optional[int] = None, vmas: Optional[Sequence[Vma]] = None) -> bool:
        """Read which code is mapped, open new files; True if it changed.

        ``at`` (CLOCK_MONOTONIC ns): when the change happened, such as the time of an exec; default now.
        ``vmas``: a reading that has been made already.
        """
        return self.alive and self._history.refresh(at, vmas)

    def find_python(self) -> Optional[cpython.Places]:
        """Where the frames of Python code are kept in this process; None where that is not known.

        With these, ``resolve`` names the frames that the kernel side recorded.
        """
        layout = self._history.at(None)
        for module in layout.modules:
            file = self._engine.files[module.file]
            section = file.headers.section(cpython.SECTION)
            if section is None:
                continue
            with suppress(CannotTrace, OSError):
                memory = Memory(self._pid)
                python = cpython.python_of(file.path, module.bias + section.address, memory.read)
                if python is None:
                    memory.close()
                    self.shortfalls.python(cpython.version_of(file.path))
                    return None
                if self._memory is not None:
                    self._memory.close()
                self._memory, self._python = memory, cpython.PythonCode(python, memory.read)
                return python.places
        return None

    def mapped(self, vma: Vma, at: int) -> None:
        """Take in what was mapped to be executed, at a time (CLOCK_MONOTONIC ns), by the kernel's word."""
        self._history.mapped(vma, at)

    def executed(self, file: FileKey, auxv: Mapping[int, int], at: int) -> None:
        """Take in that the process began to execute a program; see ``ModuleHistory.executed``."""
        root = _root(self._pid) if self.alive else None
        if root is not None:  # it may have been changed in between (chroot(2))
            if self._root is not None:
                os.close(self._root)
            self._root = self._history.root = root
            self._jit = JitNames(root, *_identity(self._pid))
        self._history.executed(file, auxv, at)

    @property
    def version(self) -> int:
        """Another number when other code may lie at an address."""
        return self._history.version

    def resolve(self, copy: StackCopy) -> Stack:
        """The named stack of a copy; without frames, but with a note, where it could not be unwound.

        Where nothing can be unwound on this machine it is what frame pointers tell.
        """
        return self.unwind(copy).stack

    def unwind(self, copy: StackCopy) -> Unwound:
        """As ``resolve``, with where the frames were found."""
        unwound = self._unwind(copy)
        if not unwound.stack.frames:
            self.shortfalls.stack_failed()
        return unwound

    def frames_of(self, copy: StackCopy, offsets: Sequence[int]) -> dict[int, Frame]:
        """Of places in a copy, in bytes from the stack pointer, the physical frames that they lie in.

        Those of which that is not certain are left out: see ``Walk.extents``.
        """
        layout = self._history.at(copy.at)
        walk = self._walk(layout, copy)
        if walk is None:
            return {}
        extents = walk.extents()
        starts = [start for start, _, _ in extents]
        inside: dict[int, int] = {}
        for offset in offsets:
            at = bisect_right(starts, offset) - 1
            if at >= 0 and offset < extents[at][1]:
                inside[offset] = extents[at][2]
        named = {number: self._frames([walk.pcs[number]], layout)[-1] for number in set(inside.values())}
        return {offset: named[number] for offset, number in inside.items()}

    def _unwind(self, copy: StackCopy) -> Unwound:
        layout = self._history.at(copy.at)
        walk = self._walk(layout, copy)
        ended_nowhere = walk is not None and (walk.stopped_at is not None or not walk.pcs)
        if ended_nowhere and self.alive and self._history.refresh_for_unknown():
            # A library that was loaded since the last reading, most likely.
            layout = self._history.at(copy.at)
            walk = self._walk(layout, copy) or walk
        if walk is None and self._engine.because:
            frames = self._frames(frame_pointer_walk(copy, layout), layout)
            if not frames:
                return Unwound(Stack(note=f"{self._engine.because}; {NOTE_NO_FRAMES}"))
            return Unwound(Stack(frames, False, StackSource.FRAME_POINTER, self._engine.because))
        if walk is None:
            return Unwound(Stack(note="unwinding failed on this program's files"))
        frames = self._frames(walk.pcs, layout)
        if self._python is not None and copy.python:
            frames = cpython.with_python(frames, self._python.groups(copy.python))
        if goroots.is_bottom(frames):
            walk = replace(walk, end=End.OUTERMOST)
        complete = walk.complete and not goroots.is_switched(frames)
        note = _note(walk, frames, len(copy.memory))
        return Unwound(Stack(frames, complete, StackSource.COPIED, note), walk.slots)

    def _walk(self, layout: Layout, copy: StackCopy) -> Optional[Walk]:
        return self._engine.walk(layout, copy, lambda address: self._made.page(layout, address))

    def name_address(self, address: int, at: Optional[int] = None) -> Optional[Frame]:
        """A thread's start routine at the very address; None if no code is there."""
        layout = self._history.at(at)
        if layout.find(address) is None and self.alive and self._history.refresh_for_unknown():
            layout = self._history.at(at)
        if layout.find(address) is None:
            return None
        return with_library_routine(self._frames([Pc(address, True)], layout)[-1])

    def called(self, copy: StackCopy, frames: Sequence[Frame]) -> Optional[str]:
        """The function whose address the created thread was started with; None where that is not sure.

        libstdc++ keeps it in the object that the start routine is given (bits/std_thread.h, _State_impl):
        after a pointer to virtual functions, and after the arguments.  Of a block of glibc's malloc that
        was read whole it is the only word that is the address of a function with such parameters.
        """
        kind = called_type(frames) if copy.argument else None
        size = copy.argument[0] & ~_MALLOC_FLAGS if kind is not None else 0
        if kind is None or size % (2 * _WORD) or not 4 * _WORD <= size <= _WORD * len(copy.argument):
            return None
        layout = self._history.at(copy.at)
        found = set()
        for word in copy.argument[2 : size // _WORD]:
            place = layout.find(word)
            if place is not None and place.file is not None:
                frame = self._frames([Pc(word, True)], layout)[-1]
                if frame.function and frame.function_offset == 0 and has_parameters(frame.function, kind):
                    found.add(frame.function)
        return found.pop() if len(found) == 1 else None

    def _frames(self, pcs: Sequence[Pc], layout: Layout) -> tuple[Frame, ...]:
        places = [layout.find(pc.address - (not pc.exact)) for pc in pcs]
        by_file: dict[int, list[Pc]] = {}
        for pc, place in zip(pcs, places):
            if place is not None and place.file is not None:
                by_file.setdefault(place.file, []).append(Pc(pc.address - place.bias, pc.exact))
        roots = [root for root in (self._root, self._own_root) if root is not None]
        named = {file: self._engine.names(file, inside, roots) for file, inside in by_file.items()}
        for file in by_file:
            why = self._engine.why_unnamed(file)
            if why:
                self.shortfalls.no_names(self._engine.files[file].path, why)
            elif self._engine.lacks_debug_info(file):
                self._tell_bare(file, named[file])
        frames: list[Frame] = []
        for pc, place in zip(pcs, places):
            if place is None:
                frames.append(Frame(None, offset=pc.address))
            elif place.file is not None:
                frames += named[place.file][Pc(pc.address - place.bias, pc.exact)]
            elif place.path:
                self.shortfalls.no_names(place.path, self._engine.files.why_refused(place.path))
                frames.append(Frame(None, module=place.path, offset=pc.address - place.bias))
            else:
                frames.append(self._jit_frame(pc, layout))
        return tuple(frames)

    def _tell_bare(self, file: int, named: dict[Pc, tuple[Frame, ...]]) -> None:
        bare = sum(frame.function is None for frames in named.values() for frame in frames)
        if bare:
            stored = self._engine.files[file]
            self.shortfalls.bare(
                Bare(stored.path, stored.headers.build_id, *stored.place), bare, self._engine.asks_debuginfod
            )
        self.shortfalls.fetching(self._engine.fetching_note)

    def _jit_frame(self, pc: Pc, layout: Layout) -> Frame:
        region = None
        if self._jit is not None:
            region = self._jit.find(pc.address - (not pc.exact))
            note = self._jit.note
            if region is None and self._jit.is_missing:
                note = note or how_to_get(self._jit.pid, (place.path for place in layout.ranges))
            self.shortfalls.perf_map(self._pid, note)
        return Frame(None if region is None else region.name, module=JIT, offset=pc.address)


def _note(walk: Walk, frames: Sequence[Frame], copied: int) -> str:
    """What is to be said of a walk; ``copied`` bytes of stack there were."""
    notes = []
    native = [frame for frame in frames if is_native(frame)]
    if goroots.is_switched(frames):
        notes.append(goroots.NOTE_OTHER_STACK)
    elif walk.end is End.COPY and copied + walk.lacking > MAX_STACK_BYTES:
        notes.append(f"cut where the copy ends: the next frame is {size(walk.lacking)} further up the stack")
    elif walk.end is not End.OUTERMOST:
        last = frame_name(native[-1]) if native else "the first frame"
        stopped_at = f"{walk.stopped_at or 0:#x}"
        notes.append(_ENDS[walk.end].format(last=last, stopped_at=stopped_at))
    if walk.guessed is not None:
        notes.append(f"the caller of {frame_name(native[walk.guessed])} {NOTE_GUESSED}")
    return "; ".join(notes)


_ENDS = {
    End.COPY: NOTE_TRUNCATED,
    End.ABSENT: NOTE_ABSENT,
    End.OTHER_STACK: NOTE_OTHER_STACK,
    End.NO_TABLE: "cut at {last}: its code has no unwind table, and how it returns could not be determined",
    End.NO_CODE: "cut at {last}: it returns to {stopped_at}, where no code is known",
    End.NO_CALL: "cut at {last}: no call was made there",
    End.TOO_LONG: "cut: there are more frames than are taken",
    End.FAILED: "cut at {last}: the unwind tables make no sense there",
}


def _pidfd(pid: int) -> Optional[int]:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _root(pid: int) -> Optional[int]:
    with suppress(CannotTrace):
        return through_live_task(pid, "root directory", lambda tid: os.open(f"/proc/{tid}/root", _DIRECTORY))
    return None


def _own_root() -> Optional[int]:
    with suppress(OSError):
        return os.open("/", _DIRECTORY)
    return None


def _identity(pid: int) -> tuple[int, frozenset[int]]:
    """The PID of a process in its own PID namespace, and the users that may own its perf map (proc(5))."""
    inner, owners = pid, {0}
    with suppress(OSError, ValueError, IndexError):
        for line in read_small(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"NSpid:"):
                inner = int(line.split()[-1])
            elif line.startswith(b"Uid:"):
                owners.update(int(word) for word in line.split()[1:])
    return inner, frozenset(owners)
