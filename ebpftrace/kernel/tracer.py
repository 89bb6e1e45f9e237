# SPDX-License-Identifier: Apache-2.0
"""The kernel side as Python sees it: load, attach, register threads, read the ledger, detach.

bcc attaches through perf events whose file descriptors belong to this process: however it ends, the
kernel closes them, and no probe outlives it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Optional, Union

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel import tables
from ebpftrace.kernel.cost import RunTime, run_time
from ebpftrace.kernel.exits import MissedExits
from ebpftrace.kernel.images import code_ranges
from ebpftrace.kernel.layout import (
    ADDRESS_BITS,
    CALL_EVENT,
    CALLS,
    COPY_ARGUMENT,
    COPY_HEAD,
    IMAGE_AUXV,
    IMAGE_HEAD,
    LISTED_EVENT,
    MAX_SPACES,
    NAME_BYTES,
    NAME_SLOT,
    PYTHON_FRAME,
    PYTHON_FRAMES,
    REGISTER_BYTES,
    ROW_EVENT,
    SETTLED_EVENT,
    SPACE_SHIFT,
    CallEvent,
    CallKind,
    CopyHead,
    EventKind,
    ImageHead,
    LibcKeyT,
    LibcT,
    LibraryT,
    LifeKeyT,
    LifeT,
    ListedEvent,
    MappingT,
    PythonT,
    RangeT,
    RowEvent,
    SettledEvent,
    SpaceT,
    ThreadT,
    ToldT,
    WalkStop,
    WalkT,
)
from ebpftrace.kernel.loading import Loading
from ebpftrace.kernel.losses import skipped_runs
from ebpftrace.kernel.ringbuf import Drainer, RingBuffer, record_size, records
from ebpftrace.kernel.snapshot import BrkMoves, Snapshot, decode_name, read_brk_moves, read_snapshots
from ebpftrace.kernel.sweeper import Sweeper
from ebpftrace.ledger.events import Displaced, Event, Hole, Move
from ebpftrace.ledger.replay import Leftovers
from ebpftrace.model import FailedCall, Interval, Row, ThreadId
from ebpftrace.process.books.final import LibcFile, Listed
from ebpftrace.process.files import FileKey
from ebpftrace.process.tasks import Task
from ebpftrace.vmas import Vmas

_MOST_WAITING_BYTES = 64 << 20
"""Events, and likewise stack copies, that may wait in Python; what comes beyond is lost and counted."""

_FAILED_CALL, _FAILED_ERROR = 32, 40  # bits of flags (bpf/mappings.h, call_failed)
_END_DIES = 1  # bpf/walk.h
_MINOR_BITS = 20  # include/linux/kdev_t.h
_NEVER = (1 << 64) - 1
_EVERYWHERE = Interval(0, 1 << ADDRESS_BITS)


@dataclass(frozen=True)
class Executed:
    """A task of the address space executed another program: it has left, or only begun (COMMAND)."""

    tid: int
    at: int


@dataclass(frozen=True)
class CodeMapped:
    """Executable memory was mapped: a library was loaded, or a JIT works.

    Told once in CODE_REST_NS only: more may be mapped within that time.
    """

    at: int


@dataclass(frozen=True)
class ImageMapped:
    """A file was mapped to be executed."""

    file: FileKey
    """Its path is as its task sees it, from its own root."""
    interval: Interval
    offset: int
    """In the file, of the first byte mapped."""
    tid: int
    at: int


@dataclass(frozen=True)
class ImageExecuted:
    """A task began to execute a program; told before ``Executed``."""

    file: FileKey
    tid: int
    auxv: dict[int, int]
    """What is of use of its auxiliary vector: values by type (getauxval(3))."""
    at: int


@dataclass(frozen=True)
class Settled:
    """A process that is followed has created its first thread, and its address space has got a number."""

    tgid: int
    image: int
    """The process that executed its program: itself, or the one that it was forked from."""
    name: str
    born: int
    """When it was forked, or executed its program."""
    at: int


@dataclass(frozen=True)
class ListedAtEnd:
    """A thread on glibc's lists at the end of an address space, read in one ``walk``."""

    walk: int
    thread: Listed


@dataclass(frozen=True)
class Walked:
    """The lists of an address space have been walked at its end, or could not be.

    Of an exec that fails it is told too, on kernels before 6.10: only what comes before ``Executed`` counts.
    """

    walk: int
    complete: bool
    why: str
    """What kept the walk from being complete."""
    sent: int
    """How many were told as ``ListedAtEnd`` in this walk."""
    dies: bool
    """The process ends; else it executes another program."""
    ended_at: int
    """First sign of the end."""


@dataclass(frozen=True)
class Awaited:
    """A thread that ended with its process slept at this futex."""

    address: int


@dataclass(frozen=True)
class RawCopy:
    """Registers and stack of a thread at a call, as the kernel copied them."""

    site: int
    call: CallKind
    at: int
    """``made_at`` of the mapping, ``born`` of the created thread, or the exit of the brk call."""
    tid: int
    """The thread that made the call."""
    registers: bytes
    memory: bytes
    is_cut: bool
    """The copy ended at its size limit, not at the end of the stack."""
    python: tuple[tuple[int, int, int], ...] = ()
    """Frames of Python code, innermost first: code object, instruction, and who called it (``cpython``)."""
    missing: int = 0
    """Pages that were not in memory: bit n is the one after the first and n more."""
    argument: tuple[int, ...] = ()
    """As in ``StackCopy``."""


KernelEvent = Union[
    Event,
    FailedCall,
    Executed,
    CodeMapped,
    ImageMapped,
    ImageExecuted,
    ListedAtEnd,
    Walked,
    Awaited,
    Settled,
]


class Tracer:
    """Our programs in the kernel, tracing some address spaces; a context manager.

    ``on_event(space, event)`` and ``on_copy(space, copy)`` are called from ``poll``.
    """

    def __init__(
        self,
        loading: Loading,
        on_event: Callable[[int, KernelEvent], None],
        on_copy: Callable[[int, RawCopy], None],
    ) -> None:
        """Wait until the programs are attached; they stay ``loading``'s.  Raises CannotTrace."""
        self._on_event = on_event
        self._on_copy = on_copy
        self._register_bytes = REGISTER_BYTES[platform.machine()]
        self._spaces = 0
        self._known: set[int] = set()
        """Address spaces in use."""
        self._followed_from = MAX_SPACES
        self._same: Optional[dict[int, Snapshot]] = None
        self._baseline_at: dict[int, int] = {}
        self._python: dict[int, PythonT] = {}
        self._told: dict[int, ToldT] = {}
        installed = loading.wait()
        sizes = loading.sizes
        names = [
            "mappings",
            "threads",
            "exited",
            "sites",
            "spaces",
            "told",
            "failures",
            "libcs",
            "libraries",
            "walks",
        ]
        names += ["numbers", "processes"]
        self._fds = {name: installed.tables[name] for name in names}
        self._programs = dict(installed.programs)
        self._skipped_before = skipped_runs(self._programs.values())
        page = os.sysconf("SC_PAGE_SIZE")
        events, copies, images = (installed.tables[name] for name in ("events", "copies", "images"))
        self._events = RingBuffer(events, sizes.event_pages * page, _MOST_WAITING_BYTES)
        self._copies = RingBuffer(copies, sizes.copy_pages * page, _MOST_WAITING_BYTES)
        self._images = RingBuffer(images, sizes.image_pages * page, _MOST_WAITING_BYTES)
        # In this order: when a copy is read, what it runs through has been read.
        self._drainer = Drainer([self._copies, self._images, self._events], [copies, images, events])
        self._sweeper = Sweeper(self._fds, sizes)
        self._missed_exits = MissedExits(self._fds)

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more."""
        self._drainer.stop()
        self._events.close()
        self._copies.close()
        self._images.close()

    def add_space(self, pid: int, heap_end: int, code: Sequence[Interval]) -> int:
        """Prepare the address space of process ``pid`` and return its number.

        ``code`` as ``code_ranges`` returns it; it may be of a while ago.
        Raises CannotTrace beyond MAX_SPACES.
        """
        space = self._new_space(SpaceT(brk=heap_end), pid)
        self._tell(space, code, _NEVER)
        return space

    def add_pending_space(self, pid: int) -> int:
        """Prepare the address space that process ``pid`` will have once it executes a program."""
        space = self._new_space(SpaceT(), pid)
        # Where its code will lie is not known: until code_read() all words tell call paths apart.
        self._tell(space, [_EVERYWHERE], _NEVER)
        life = LifeT(born=time.monotonic_ns(), tid=pid, tgid=pid, space=space, is_thread=1)
        tables.update(
            self._fds["threads"], ctypes.c_uint32(pid), ThreadT(life=life, waits_for_exec=1, image=pid)
        )
        return space

    def baseline_read(self, space: int, vmas: Vmas) -> None:
        """Tell the kernel side that the baseline is known, and where code lies.

        Until then it reports the end of every mapping: the mapping may be in the baseline too.
        """
        self._baseline_at[space] = time.monotonic_ns()
        self.code_read(space, vmas)

    def code_read(self, space: int, vmas: Vmas) -> None:
        """Tell the kernel side where code lies, after libraries were loaded."""
        self._tell(space, code_ranges(vmas), self._baseline_at[space])

    def python_found(self, space: int, places: Sequence[int]) -> None:
        """Tell the kernel side where the frames of Python code are kept: the fields of ``PythonT``."""
        python = PythonT(*places)
        if bytes(python) != bytes(self._python.get(space, PythonT())):
            self._python[space] = self._told[space].python = python
            tables.update(self._fds["told"], ctypes.c_uint32(space), self._told[space])

    def known_threads(self) -> set[int]:
        """Tids of all that are traced now, in whichever address space."""
        return tables.u32_keys(self._fds["threads"], ThreadT, ThreadT.life.offset + LifeT.exited_at.offset)

    def add_threads(self, space: int, tasks: Iterable[Task]) -> list[Task]:
        """Trace these tasks; return those that the kernel side did not know before.

        From here on every thread that one of them creates is traced from its birth.
        """
        new = []
        record, tid = ThreadT(life=LifeT(space=space, is_thread=1)), ctypes.c_uint32()
        # Whom the kernel side saw being born stays as it is: it has counted already.
        insert = tables.inserter(self._fds["threads"], tid, record)
        life = record.life
        for task in tasks:
            tid.value = life.tid = task.id.tid
            life.born = _born(task)
            life.tgid = record.image = task.tgid
            life.name = task.name.encode("utf-8", "surrogateescape")[: NAME_BYTES - 1]
            if insert() or self._succeeds_exited(tid, record):
                new.append(task)
        self._missed_exits.threads_added()
        return new

    def _succeeds_exited(self, tid: ctypes.c_uint32, record: ThreadT) -> bool:
        """Write ``record`` where one stands that exited and had the same number; False where it lives."""
        former = ThreadT()
        if tables.lookup(self._fds["threads"], tid, former):
            life = former.life
            if not life.exited_at:
                return False
            tables.update(self._fds["exited"], LifeKeyT(born=life.born, tid=life.tid), life)
        tables.update(self._fds["threads"], tid, record)
        return True

    def forget_thread(self, task: Task) -> None:
        """Drop a task that exited before it was added: nobody will tell us of its end.

        Not whom the kernel side saw exit, nor another one that has its number by now.
        """
        record, tid = ThreadT(), ctypes.c_uint32(task.id.tid)
        is_there = tables.lookup(self._fds["threads"], tid, record)
        if is_there and record.life.born == _born(task) and not record.life.exited_at:
            tables.delete(self._fds["threads"], tid)

    def fileno(self) -> int:
        """Becomes readable when much has come, or something that should be looked at soon."""
        return self._drainer.fileno()

    def poll(self) -> None:
        """Handle all events and copies that have come; does not wait."""
        self._drainer.drain()
        copies = list(self._copies.take())  # first, and looked at last: see where the drainer is made
        events = list(self._events.take())
        # Once more: what a process executes was told before it settled.
        self._drainer.drain()
        for piece in self._images.take():
            for record in records(piece):
                self._image(record)
        for piece in events:
            for record in records(piece):
                self._event(record)
        for piece in copies:
            for record in records(piece):
                self._copy(record)

    def read(self) -> dict[int, Snapshot]:
        """Read the ledger of every address space.  Poll afterwards: its events then cover the rows."""
        if self._same is not None:
            return self._same
        skipped = skipped_runs(self._programs.values()) - self._skipped_before
        # Where the kernel counts what it skips, these are among them.
        lost = max(skipped, self._missed_exits.count)
        lost += self._events.dropped // record_size(CALL_EVENT.size)
        snapshots = read_snapshots(self._fds, self._known, lost, self._sweeper.lost)
        for snapshot in snapshots.values():
            snapshot.dropped_copy_bytes = self._copies.dropped
        return snapshots

    @contextmanager
    def same_reading(self) -> Iterator[None]:
        """Read the tables once for several address spaces that have ended."""
        self._same = self.read()
        try:
            yield
        finally:
            self._same = None

    def follow(self, first: int) -> None:
        """Give the numbers from ``first`` on to address spaces of processes that are followed."""
        self._followed_from = first
        for space in range(first, MAX_SPACES):
            tables.push(self._fds["numbers"], ctypes.c_uint32(space))

    def processes(self) -> tuple[int, int]:
        """How many processes have been followed, and how many could not be, for want of room."""
        fd = self._fds["processes"]
        return tables.per_cpu_sum(fd, 0), tables.per_cpu_sum(fd, 1)

    def give_back(self, spaces: Collection[int]) -> None:
        """Delete what stands of address spaces that have ended; others may have their numbers then.

        Not where somebody still lives in one: a process that shared it.
        """
        if not spaces:
            return
        living = set()
        for tid, thread in tables.entries(self._fds["threads"], ctypes.c_uint32, ThreadT):
            if thread.life.space in spaces:
                if thread.life.exited_at:
                    tables.delete(self._fds["threads"], ctypes.c_uint32(tid.value))
                else:
                    living.add(thread.life.space)
        for key, life in tables.entries(self._fds["exited"], LifeKeyT, LifeT):
            if life.space in spaces:
                tables.delete(self._fds["exited"], LifeKeyT(born=key.born, tid=key.tid))
        for keys, _ in tables.batches(self._fds["mappings"], ctypes.c_uint64, MappingT):
            for row in keys.cast("B").cast("Q"):
                if row >> SPACE_SHIFT in spaces:
                    tables.delete(self._fds["mappings"], ctypes.c_uint64(row))
        for space in spaces:
            self._known.discard(space)
            self._baseline_at.pop(space, None)
            if space >= self._followed_from and space not in living:
                tables.push(self._fds["numbers"], ctypes.c_uint32(space))

    def crowded(self) -> bool:
        """Say whether the kernel's tables should be swept: ask often, it is hardly ever looked at them."""
        return self._sweeper.crowded()

    def find_missed_exits(self) -> None:
        """Find threads whose exit the kernel side was not told of: call it often, too."""
        self._missed_exits.look()

    def sweep(self, space: int, leftovers: Leftovers) -> None:
        """Delete from the tables what nothing is left of."""
        for row in self._sweeper.sweep(space, leftovers):
            self._on_event(space, Displaced(row))

    def brk_moves_by_site(self) -> dict[int, BrkMoves]:
        """How the break was moved, by site (signature); of all address spaces together."""
        return read_brk_moves(self._fds["sites"])

    def run_times(self) -> dict[str, RunTime]:
        """What each of our programs has run so far; zeros unless the kernel measures them."""
        return {name: run_time(fd) for name, fd in self._programs.items()}

    def know_libc(self, file: FileKey, libc: LibcFile) -> None:
        """Have the kernel side recognise this libc wherever it is mapped."""
        text = libc.text
        if text is None:
            return
        try:
            tables.update(self._fds["libcs"], _libc_key(file), _libc_record(libc, text))
        except tables.TableRefused:
            return  # it is full: of such a process the end is not judged

    def set_libc(self, space: int, file: FileKey, libc: LibcFile, base: int) -> None:
        """Tell which libc an address space has, and what relocation adds to its addresses."""
        record = LibraryT(_libc_key(file), base, 1, _libc_record(libc, libc.text or 0))
        tables.update(self._fds["libraries"], ctypes.c_uint32(space), record)

    def _new_space(self, record: SpaceT, pid: int) -> int:
        space = self._spaces
        if space >= min(MAX_SPACES, self._followed_from):
            raise CannotTrace(f"more than {MAX_SPACES} address spaces at once can't be traced")
        tables.update(self._fds["spaces"], ctypes.c_uint32(space), record)
        tables.update(self._fds["walks"], ctypes.c_uint32(space), WalkT(tgid=pid))
        self._known.add(space)
        self._spaces += 1
        return space

    def _tell(self, space: int, code: Sequence[Interval], baseline_at: int) -> None:
        record = ToldT(baseline_at=baseline_at, python=self._python.get(space, PythonT()))
        if code:
            record.all_code = RangeT(code[0].start, code[-1].end)
        for index, interval in enumerate(code):
            record.code[index] = RangeT(interval.start, interval.end)
        self._baseline_at[space] = baseline_at
        self._told[space] = record
        tables.update(self._fds["told"], ctypes.c_uint32(space), record)

    def _event(self, record: memoryview) -> None:
        call = CallEvent(*CALL_EVENT.unpack(record))
        event: KernelEvent
        if call.kind == EventKind.HOLE:
            event = Hole(Interval(call.start, call.start + call.length), call.at)
        elif call.kind == EventKind.DISPLACED:
            row = RowEvent(*ROW_EVENT.unpack(record))
            mapper = ThreadId(row.tid, row.mapper_born)
            event = Displaced(
                Row(row.start, row.length, row.since, row.made_at, mapper, row.prot, row.flags, row.site)
            )
            self._sweeper.displaced(row.space, event.row)
        elif call.kind == EventKind.MOVE:
            event = Move(
                old=Interval(call.start, call.start + call.length),
                new=Interval(call.new_start, call.new_start + call.new_length),
                at=call.at,
                # The kernel's clock for BPF may step back (ktime_get_mono_fast_ns); a call does not.
                done_at=max(call.done_at, call.at + 1),
            )
        elif call.kind == EventKind.FAILED:
            event = FailedCall(
                call=CALLS[call.flags >> _FAILED_CALL & 0xFF],
                error=call.flags >> _FAILED_ERROR,
                start=call.start,
                length=call.length,
                new=Interval(call.new_start, call.new_start + call.new_length),
                flags=call.flags & 0xFFFFFFFF,
                tid=call.tid,
                at=call.at,
            )
        elif call.kind == EventKind.EXEC:
            event = Executed(call.tid, call.at)
        elif call.kind == EventKind.SETTLED:
            settled = SettledEvent(*SETTLED_EVENT.unpack(record))
            name = decode_name(settled.name.partition(b"\0")[0])
            event = Settled(settled.tgid, settled.image, name, settled.born, settled.at)
            self._known.add(call.space)
        elif call.kind == EventKind.LISTED:
            listed = ListedEvent(*LISTED_EVENT.unpack(record))
            event = ListedAtEnd(listed.place >> 1, _listed(listed))
        elif call.kind == EventKind.WALKED:
            stop = WalkStop(call.new_start)
            complete = stop is WalkStop.COMPLETE
            dies = call.flags == _END_DIES
            event = Walked(call.new_length, complete, _STOPS[stop], call.length, dies, call.at)
        elif call.kind == EventKind.AWAITED:
            event = Awaited(call.start)
        else:
            event = CodeMapped(call.at)
        self._on_event(call.space, event)

    def _image(self, record: memoryview) -> None:
        head = ImageHead(*IMAGE_HEAD.unpack_from(record))
        device = f"{head.device >> _MINOR_BITS:02x}:{head.device & (1 << _MINOR_BITS) - 1:02x}"
        names = bytes(record[IMAGE_HEAD.size + IMAGE_AUXV.size :])
        file = FileKey(device, head.inode, image_path(names))
        event: KernelEvent
        if head.is_program:
            words = IMAGE_AUXV.unpack_from(record, IMAGE_HEAD.size)
            event = ImageExecuted(file, head.tid, dict(zip(words[::2], words[1::2])), head.at)
        else:
            area = Interval(head.start, head.start + head.length)
            event = ImageMapped(file, area, head.offset, head.tid, head.at)
        self._on_event(head.space, event)

    def _copy(self, record: memoryview) -> None:
        head = CopyHead(*COPY_HEAD.unpack_from(record))
        first = COPY_HEAD.size + COPY_ARGUMENT.size
        registers = first + PYTHON_FRAMES * PYTHON_FRAME.size
        memory = registers + self._register_bytes
        count = min(head.python_count, PYTHON_FRAMES)
        python = record[first : first + count * PYTHON_FRAME.size]
        self._on_copy(
            head.space,
            RawCopy(
                site=head.site,
                call=CallKind(head.call),
                at=head.at,
                tid=head.tid,
                registers=bytes(record[registers:memory]),
                memory=bytes(record[memory : memory + head.size]),
                is_cut=bool(head.is_cut),
                python=tuple(PYTHON_FRAME.iter_unpack(python)),
                missing=head.missing,
                argument=COPY_ARGUMENT.unpack_from(record, COPY_HEAD.size) if head.has_argument else (),
            ),
        )


_STOPS = {
    WalkStop.COMPLETE: "",
    WalkStop.CHANGED: "glibc's thread lists changed while they were read, or are broken",
    WalkStop.TOO_LONG: "glibc's thread lists are too long to be read in a dying process",
    WalkStop.NO_LIST: "no glibc was known to be in the process, or its thread lists could not be read",
}


def _listed(event: ListedEvent) -> Listed:
    return Listed(
        descriptor=event.descriptor,
        join=event.join,
        start_routine=event.start_routine,
        block=event.block,
        block_size=event.block_size,
        tid=event.thread_tid,
        cancelhandling=event.cancelhandling,
        setxid=event.setxid,
        user_stack=bool(event.place & 1),
    )


def _libc_key(file: FileKey) -> LibcKeyT:
    major, _, minor = file.device.partition(":")
    return LibcKeyT(inode=file.inode, device=int(major, 16) << _MINOR_BITS | int(minor, 16))


def _libc_record(libc: LibcFile, text: int) -> LibcT:
    layout = libc.lists.layout
    return LibcT(
        text=text,
        root=libc.root,
        used=libc.lists.used,
        user=libc.lists.user,
        link=layout.link,
        tid=layout.tid,
        cancelhandling=layout.cancelhandling,
        setxid=libc.setxid,
        join=libc.join,
        start_routine=layout.start_routine,
        block=libc.block,
    )


def image_path(slots: bytes) -> str:
    """Path of the file whose names ``struct image_t`` has, as /proc/PID/maps would print it."""
    names = [slots[at : slots.index(0, at)] for at in range(0, len(slots), NAME_SLOT)]
    path = b"/" + b"/".join(name for name in reversed(names) if name)
    return path.replace(b"\n", b"\\012").decode("utf-8", "surrogateescape")


def _born(task: Task) -> int:
    """When a task began, as the table holds it: where the machine slept the time may come out negative."""
    return max(task.id.born, 0)
