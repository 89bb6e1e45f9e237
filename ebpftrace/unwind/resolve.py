# SPDX-License-Identifier: Apache-2.0
"""From the copies of one process to stacks with names: the entry point of this package."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Optional

from ebpftrace.defaults import MAX_STACK_BYTES
from ebpftrace.errors import CannotTrace
from ebpftrace.frames import name as frame_name
from ebpftrace.model import Frame, Stack, StackSource, Vma
from ebpftrace.procfs.access import read_small, through_live_task
from ebpftrace.procfs.files import FileKey
from ebpftrace.procfs.memory import Memory
from ebpftrace.text import size
from ebpftrace.unwind import cpython
from ebpftrace.unwind.copies import (
    REGISTERS_SIZE,
    End,
    Extents,
    Pc,
    Registers,
    StackCopy,
    Unwound,
    Walk,
    is_native,
)
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.frame_pointers import frame_pointer_walk
from ebpftrace.unwind.jit_code import MadeCode
from ebpftrace.unwind.modules import Layout, ModuleHistory
from ebpftrace.unwind.perfmap import JitNames, how_to_get
from ebpftrace.unwind.runtimes import (
    NOTE_GO_SWITCHED,
    is_bottom_of_go,
    until_go_switched,
    with_library_routine,
)
from ebpftrace.unwind.stack_warnings import Bare, StackWarnings
from ebpftrace.wrappers import (
    called_type,
    has_parameters,
    is_pointer,
    started,
    starts_std_thread,
    state_type,
)

JIT = "[jit]"
"""Module of frames in executable memory without a file."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_WORD = 8
_MALLOC_FLAGS = 7
"""Low bits of the size of a block (glibc, malloc/malloc.c: SIZE_BITS)."""
NOTE_TRUNCATED = "cut where the copy of the stack ends (see --stack-bytes)"
NOTE_ABSENT = "cut at a page of the stack that was not in memory"
NOTE_OTHER_STACK = "cut: the callers are on another stack, of which there is no copy"
NOTE_PYTHON_NOT_RECORDED = "Python code may have more frames: only the innermost {count} are recorded"
NOTE_PYTHON_NOT_PLACED = "frames of Python code are left out: which C function runs them is not known"
NOTE_GUESSED = "is a guess, by a frame pointer in code that could not be read"
NOTE_NO_FRAMES = "the registers are of no machine that is known here"


class StackResolver:
    """Unwinds and symbolizes the stacks of one process, even after it has exited.

    Create it while the process lives, and ``refresh`` it when code is mapped or the process execs: it then
    opens files, and keeps them.  It never raises ``CannotTrace``: whatever is unknown is left out, and named
    in the stack's note or in ``stack_warnings``, which several resolvers may share.
    """

    def __init__(
        self,
        pid: int,
        engine: Engine,
        stack_warnings: Optional[StackWarnings] = None,
        will_execute: bool = False,
    ) -> None:
        """``will_execute`` means that only the program after the next ``executed`` is of interest."""
        self.stack_warnings = StackWarnings() if stack_warnings is None else stack_warnings
        self._pid = pid
        self._engine = engine
        self._handle = _pidfd(pid)
        self._root = _root(pid)
        self._own_root = _own_root()
        # If the process has exited, files are searched by their paths on this host, and then verified.
        root = self._own_root if self._root is None else self._root
        self._history = ModuleHistory(pid, engine.files, root)
        self._jit = None if self._root is None else JitNames(self._root, *_identity(pid))
        self._python: Optional[cpython.PythonCode] = None
        self._evaluators: set[tuple[Optional[str], Optional[int]]] = set()
        self._memory: Optional[Memory] = None
        self._made = MadeCode(pid, engine.files)
        if not will_execute:
            self.refresh()

    def __enter__(self) -> StackResolver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors of this process; files stay open in the engine."""
        self._made.close()
        for fd in (self._handle, self._root, self._own_root):
            if fd is not None:
                os.close(fd)
        self._handle = self._root = self._own_root = self._history.root = None
        if self._memory is not None:
            self._memory.close()

    @property
    def alive(self) -> bool:
        """Whether the process still runs; its PID may be in use by another one."""
        if self._handle is None:
            return False
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return not poll.poll(0)

    def refresh(self, at: Optional[int] = None, vmas: Optional[Sequence[Vma]] = None) -> bool:
        """Read which code is mapped, and open new files; True if it changed.

        ``at`` (CLOCK_MONOTONIC ns) is the time of the change, such as an exec, by default now.  ``vmas`` are
        the mappings, if they were read already.
        """
        return self.alive and self._history.refresh(at, vmas)

    def find_python(self) -> Optional[cpython.Places]:
        """Find where this process stores the frames of Python code; None if that is unknown.

        ``resolve`` then names the frames that the BPF program recorded.
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
                    self.stack_warnings.python(cpython.version_of(file.path))
                    return None
                if self._memory is not None:
                    self._memory.close()
                self._memory, self._python = memory, cpython.PythonCode(python, memory.read)
                return python.places
        return None

    def mapped(self, vma: Vma, at: int) -> None:
        """Record an executable mapping that the kernel reported, with its time (CLOCK_MONOTONIC ns)."""
        self._history.mapped(vma, at)

    def executed(self, file: FileKey, auxv: Mapping[int, int], at: int) -> None:
        """Record that the process began to execute a program; see ``ModuleHistory.executed``."""
        root = _root(self._pid) if self.alive else None
        if root is not None:  # chroot(2) may have changed it meanwhile
            if self._root is not None:
                os.close(self._root)
            self._root = self._history.root = root
            self._jit = JitNames(root, *_identity(self._pid))
        self._evaluators.clear()
        self._history.executed(file, auxv, at)

    @property
    def version(self) -> int:
        """A number that changes when other code may be at an address."""
        return self._history.version

    def resolve(self, copy: StackCopy) -> Stack:
        """The named stack of a copy; if it could not be unwound, it has no frames, but a note.

        If this machine can't unwind, the stack is that of frame pointers.
        """
        return self.unwind(copy).stack

    def unwind(self, copy: StackCopy) -> Unwound:
        """As ``resolve``, with the addresses of the frames."""
        unwound = self._unwind(copy)
        if not unwound.stack.frames:
            self.stack_warnings.stack_failed()
        return unwound

    def frames_of(self, copy: StackCopy, offsets: Sequence[int]) -> dict[int, Frame]:
        """Map offsets in a copy, in bytes from the stack pointer, to the physical frames that contain them.

        Offsets for which this is not certain are left out; see ``Walk.extents``.  On aarch64 all are.
        """
        if len(copy.registers) != REGISTERS_SIZE:
            return {}
        layout = self._history.at(copy.at)
        walk = self._walk(layout, copy)
        if walk is None:
            return {}
        extents = Extents(walk)
        found = {offset: extents.frame_at(offset) for offset in offsets}
        inside = {offset: number for offset, number in found.items() if number is not None}
        named = {number: self._frames([walk.pcs[number]], layout)[-1] for number in set(inside.values())}
        return {offset: named[number] for offset, number in inside.items()}

    def _unwind(self, copy: StackCopy) -> Unwound:
        layout = self._history.at(copy.at)
        walk = self._walk(layout, copy)
        ended_nowhere = walk is not None and (walk.stopped_at is not None or not walk.pcs)
        if ended_nowhere and self.alive and self._history.refresh_for_unknown():
            # Most likely a library was loaded since the last reading.
            layout = self._history.at(copy.at)
            walk = self._walk(layout, copy) or walk
        if walk is None and self._engine.unavailable_reason:
            frames = self._frames(frame_pointer_walk(copy, layout), layout)
            if not frames:
                return Unwound(Stack(note=f"{self._engine.unavailable_reason}; {NOTE_NO_FRAMES}"))
            return Unwound(Stack(frames, False, StackSource.FRAME_POINTER, self._engine.unavailable_reason))
        if walk is None:
            return Unwound(Stack(note="unwinding failed on this program's files"))
        frames = self._frames(walk.pcs, layout)
        without_python = ""
        if self._python is not None and (copy.python or copy.has_more_python):
            frames, are_all_placed = self._with_python(frames, copy, walk, self._python)
            if copy.has_more_python:
                without_python = NOTE_PYTHON_NOT_RECORDED.format(count=len(copy.python))
            elif not are_all_placed:
                without_python = NOTE_PYTHON_NOT_PLACED
        until_switch = until_go_switched(frames)
        if until_switch is not None:
            stack = Stack(tuple(until_switch), False, StackSource.COPIED, NOTE_GO_SWITCHED)
            return Unwound(stack, walk.slots[: sum(map(is_native, until_switch))])
        if is_bottom_of_go(frames):
            walk = replace(walk, end=End.OUTERMOST)
        note = "; ".join(filter(None, [_note(walk, frames, len(copy.memory)), without_python]))
        is_complete = walk.complete and not without_python
        return Unwound(Stack(frames, is_complete, StackSource.COPIED, note), walk.slots)

    def _with_python(
        self, frames: tuple[Frame, ...], copy: StackCopy, walk: Walk, python: cpython.PythonCode
    ) -> tuple[tuple[Frame, ...], bool]:
        extents = Extents(walk)
        sp = Registers.from_bytes(copy.registers).sp  # only copies of x86_64 have frames of Python code
        return cpython.with_python(
            frames,
            python.groups(copy.python),
            lambda address: extents.frame_at(address - sp),
            self._evaluators,
            are_all=not copy.has_more_python and walk.guessed is None,
        )

    def _walk(self, layout: Layout, copy: StackCopy) -> Optional[Walk]:
        return self._engine.walk(
            layout, copy, lambda address: self._made.page(layout, address), self._debug_roots()
        )

    def _debug_roots(self) -> list[int]:
        """Directories whose debug files may belong to the code: the process's root, then the host's."""
        return [root for root in (self._root, self._own_root) if root is not None]

    def name_address(self, address: int, at: Optional[int] = None) -> Optional[Frame]:
        """The start routine of a thread at exactly this address; None if no code is there."""
        layout = self._history.at(at)
        if layout.find(address) is None and self.alive and self._history.refresh_for_unknown():
            layout = self._history.at(at)
        if layout.find(address) is None:
            return None
        return with_library_routine(self._frames([Pc(address, True)], layout)[-1])

    def called(self, copy: StackCopy, frames: Sequence[Frame]) -> Optional[str]:
        """The function that the created thread was started with; None if that is not certain.

        libstdc++ stores its address in the object that is passed to the start routine (bits/std_thread.h,
        _State_impl), after a pointer to virtual functions and after the arguments.  It is certain if the
        whole block of glibc's malloc was read, and contains the address of only one function with such
        parameters.  Where the frames do not show the type of the callable, because they were inlined, the
        virtual functions do; a lambda or a class is known by it alone.
        """
        if not copy.argument:
            return None
        layout = self._history.at(copy.at)
        kind = called_type(frames)
        if kind is None and started(frames) is None and starts_std_thread(frames):
            kind = state_type(self._data_name(copy.argument[1], layout))
            if kind is not None and not is_pointer(kind):
                return kind
        size = copy.argument[0] & ~_MALLOC_FLAGS if kind is not None else 0
        if kind is None or size % (2 * _WORD) or not 4 * _WORD <= size <= _WORD * len(copy.argument):
            return None
        found = set()
        for word in copy.argument[2 : size // _WORD]:
            place = layout.find(word)
            if place is not None and place.file is not None:
                frame = self._frames([Pc(word, True)], layout)[-1]
                if frame.function and frame.function_offset == 0 and has_parameters(frame.function, kind):
                    found.add(frame.function)
        return found.pop() if len(found) == 1 else None

    def _data_name(self, address: int, layout: Layout) -> str:
        """The symbol of data of a loaded file; empty if there is none."""
        for module in layout.modules:
            at = address - module.bias
            loads = self._engine.files[module.file].headers.loads
            if any(load.address <= at < load.address + load.file_size for load in loads):
                pc = Pc(at, True)
                return self._engine.names(module.file, [pc], self._debug_roots())[pc][-1].function or ""
        return ""

    def _frames(self, pcs: Sequence[Pc], layout: Layout) -> tuple[Frame, ...]:
        places = [layout.find(pc.address - (not pc.exact)) for pc in pcs]
        by_file: dict[int, list[Pc]] = {}
        for pc, place in zip(pcs, places):
            if place is not None and place.file is not None:
                by_file.setdefault(place.file, []).append(Pc(pc.address - place.bias, pc.exact))
        roots = self._debug_roots()
        named = {file: self._engine.names(file, inside, roots) for file, inside in by_file.items()}
        for file in by_file:
            why = self._engine.why_unnamed(file)
            if why:
                self.stack_warnings.no_names(self._engine.files[file].path, why)
            elif self._engine.lacks_debug_info(file):
                self._note_bare(file, named[file])
        frames: list[Frame] = []
        for pc, place in zip(pcs, places):
            if place is None:
                frames.append(Frame(None, offset=pc.address))
            elif place.file is not None:
                frames += named[place.file][Pc(pc.address - place.bias, pc.exact)]
            elif place.path:
                self.stack_warnings.no_names(place.path, self._engine.files.why_refused(place.path))
                frames.append(Frame(None, module=place.path, offset=pc.address - place.bias))
            else:
                frames.append(self._jit_frame(pc, layout))
        return tuple(frames)

    def _note_bare(self, file: int, named: dict[Pc, tuple[Frame, ...]]) -> None:
        bare = sum(frame.function is None for frames in named.values() for frame in frames)
        if bare:
            stored = self._engine.files[file]
            self.stack_warnings.bare(
                Bare(stored.path, stored.headers.build_id, *stored.place), bare, self._engine.asks_debuginfod
            )
        self.stack_warnings.fetching(self._engine.fetching_note)

    def _jit_frame(self, pc: Pc, layout: Layout) -> Frame:
        region = None
        if self._jit is not None:
            region = self._jit.find(pc.address - (not pc.exact))
            note = self._jit.note
            if region is None and self._jit.is_missing:
                note = note or how_to_get(self._jit.pid, (place.path for place in layout.ranges))
            self.stack_warnings.perf_map(self._pid, note)
        return Frame(None if region is None else region.name, module=JIT, offset=pc.address)


def _note(walk: Walk, frames: Sequence[Frame], copied: int) -> str:
    """The note for a walk; ``copied`` is the number of bytes of the copy."""
    notes = []
    native = [frame for frame in frames if is_native(frame)]
    if walk.end is End.COPY and copied + walk.lacking > MAX_STACK_BYTES:
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
