"""The kernel side as Python sees it: load, attach, register threads, read the ledger, detach.

bcc attaches through perf events whose file descriptors belong to this process: however it ends, the
kernel closes them, and no probe outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from ebpftrace.errors import CannotTrace
from ebpftrace.kernel import tables
from ebpftrace.kernel.images import code_ranges
from ebpftrace.kernel.layout import (
    MAX_SPACES,
    NAME_BYTES,
    REGISTER_BYTES,
    SPACE_SHIFT,
    CopyHeadT,
    EventKind,
    EventT,
    LifeT,
    RangeT,
    Sizes,
    SpaceT,
    ThreadT,
    ToldT,
)
from ebpftrace.kernel.loader import load
from ebpftrace.kernel.losses import skipped_runs
from ebpftrace.kernel.snapshot import Snapshot, make_row, read_snapshots
from ebpftrace.ledger.events import Displaced, Event, Hole, Move
from ebpftrace.model import Interval, ThreadId, Vma
from ebpftrace.process.tasks import Task

_MOST_EVENTS_A_POLL = 200_000
"""A target that makes events faster than they are read must not keep one poll from returning."""

_STOP_POLLING = -1
_MREMAP_DONTUNMAP = 4  # include/uapi/linux/mman.h
_NEVER = (1 << 64) - 1
_EVERYWHERE = Interval(0, 1 << SPACE_SHIFT)


@dataclass(frozen=True)
class Executed:
    """A task of the address space executed another program: it has left, or only begun (COMMAND)."""

    tid: int
    at: int


@dataclass(frozen=True)
class CodeMapped:
    """Executable memory was mapped: a library was loaded, or a JIT works."""

    interval: Interval
    at: int


@dataclass(frozen=True)
class RawCopy:
    """Registers and stack of a thread at a call, as the kernel copied them."""

    site: int
    at: int
    """``made_at`` of the mapping, ``born`` of the created thread, or the exit of the brk call."""
    tid: int
    """The thread that made the call."""
    registers: bytes
    memory: bytes
    is_cut: bool
    """The copy ended at its size limit, not at the end of the stack."""


KernelEvent = Union[Event, Executed, CodeMapped]


class Tracer:
    """Our programs in the kernel, tracing some address spaces; a context manager.

    ``on_event(space, event)`` and ``on_copy(space, copy)`` are called from ``poll``.
    """

    def __init__(
        self,
        sizes: Sizes,
        on_event: Callable[[int, KernelEvent], None],
        on_copy: Callable[[int, RawCopy], None],
    ) -> None:
        """Load and attach.  Raises CannotTrace."""
        self._on_event = on_event
        self._on_copy = on_copy
        self._failure: Optional[BaseException] = None
        self._handled = 0
        self._registered: dict[int, set[ThreadId]] = {}
        self._baseline_at: dict[int, int] = {}
        self._bpf: Any = load(sizes)
        names = ("mappings", "threads", "exited", "runs", "sites", "spaces", "told")
        self._fds = {name: self._bpf[name].map_fd for name in names}
        self._programs = [function.fd for function in self._bpf.funcs.values()]
        self._skipped_before = skipped_runs(self._programs)
        self._bpf["events"].open_ring_buffer(self._receive(self._event))
        self._bpf["copies"].open_ring_buffer(self._receive(self._copy))

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach and free everything; a second call does nothing."""
        if self._bpf is not None:
            self._bpf.cleanup()
            self._bpf = None

    def add_space(self, vmas: Sequence[Vma]) -> int:
        """Prepare one more address space and return its number.  Raises CannotTrace beyond MAX_SPACES."""
        heap = max((vma.end for vma in vmas if vma.path == "[heap]"), default=0)
        space = self._new_space(SpaceT(brk=heap))
        self._tell(space, code_ranges(vmas), _NEVER)
        return space

    def add_pending_space(self, pid: int) -> int:
        """Prepare the address space that process ``pid`` will have once it executes a program."""
        space = self._new_space(SpaceT())
        # Where its code will lie is not known: until set_code() all words tell call paths apart.
        self._tell(space, [_EVERYWHERE], _NEVER)
        life = LifeT(born=time.monotonic_ns(), tid=pid, tgid=pid, space=space)
        self._put_thread(ThreadT(life=life, waits_for_exec=1))
        return space

    def baseline_read(self, space: int, vmas: Iterable[Vma]) -> None:
        """Tell the kernel side that the baseline is known, and where code lies.

        Until then it reports the end of every mapping: the mapping may be in the baseline too.
        """
        self._baseline_at[space] = time.monotonic_ns()
        self.code_read(space, vmas)

    def code_read(self, space: int, vmas: Iterable[Vma]) -> None:
        """Tell the kernel side where code lies, after libraries were loaded."""
        self._tell(space, code_ranges(vmas), self._baseline_at[space])

    def add_threads(self, space: int, tasks: Iterable[Task]) -> list[Task]:
        """Trace these tasks; return those that neither we nor the kernel side knew before.

        From here on every thread that one of them creates is traced from its birth.
        """
        new = []
        for task in tasks:
            if task.id in self._registered[space]:
                continue
            self._registered[space].add(task.id)
            life = LifeT(
                born=max(task.id.born, 0),
                tid=task.id.tid,
                tgid=task.tgid,
                space=space,
                name=task.name.encode("utf-8", "surrogateescape")[: NAME_BYTES - 1],
            )
            if self._put_thread(ThreadT(life=life)):
                new.append(task)
        return new

    def forget_thread(self, tid: int) -> None:
        """Drop a task that exited before it was registered: nobody will tell us of its end."""
        with contextlib.suppress(KeyError):
            del self._bpf["threads"][ctypes.c_uint32(tid)]

    def poll(self) -> int:
        """Handle the events that have come, and return how many; does not wait.

        Raises whatever ``on_event`` or ``on_copy`` raised.
        """
        self._handled = 0
        self._bpf.ring_buffer_consume()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._handled

    def read(self) -> dict[int, Snapshot]:
        """Read the ledger of every address space.  Poll afterwards: its events then cover the rows."""
        skipped = skipped_runs(self._programs) - self._skipped_before
        return read_snapshots(self._fds, len(self._registered), skipped)

    def _new_space(self, record: SpaceT) -> int:
        space = len(self._registered)
        if space >= MAX_SPACES:
            raise CannotTrace(f"more than {MAX_SPACES} address spaces at once can't be traced")
        tables.update(self._fds["spaces"], ctypes.c_uint32(space), record, tables.BPF_ANY)
        self._registered[space] = set()
        return space

    def _tell(self, space: int, code: Iterable[Interval], baseline_at: int) -> None:
        record = ToldT(baseline_at=baseline_at)
        for index, interval in enumerate(code):
            record.code[index] = RangeT(interval.start, interval.end)
        self._baseline_at[space] = baseline_at
        tables.update(self._fds["told"], ctypes.c_uint32(space), record, tables.BPF_ANY)

    def _put_thread(self, record: ThreadT) -> bool:
        """Add a thread, unless the kernel side saw it being born: then it has counted already."""
        key = ctypes.c_uint32(record.life.tid)
        try:
            tables.update(self._fds["threads"], key, record, tables.BPF_NOEXIST)
        except FileExistsError:
            return False
        return True

    def _receive(self, handle: Callable[[int], None]) -> Callable[[Any, int, int], int]:
        """A ring buffer callback: exceptions can't cross ctypes, so they wait for poll()."""

        def receive(_: Any, address: int, __: int) -> int:
            if self._failure is not None:
                return _STOP_POLLING
            try:
                handle(address)
            except BaseException as failure:
                self._failure = failure
                return _STOP_POLLING
            self._handled += 1
            return _STOP_POLLING if self._handled >= _MOST_EVENTS_A_POLL else 0

        return receive

    def _event(self, address: int) -> None:
        record = EventT.from_address(address)
        if record.row.length:
            mapper = ThreadId(record.row.mapper_tid, record.row.mapper_born)
            self._on_event(record.space, Displaced(make_row(record.start, record.row, mapper)))
        event: KernelEvent
        if record.kind == EventKind.DISPLACED:
            return
        if record.kind == EventKind.HOLE:
            event = Hole(Interval(record.start, record.start + record.length), record.at)
        elif record.kind == EventKind.MOVE:
            event = Move(
                old=Interval(record.start, record.start + record.length),
                new=Interval(record.new_start, record.new_start + record.new_length),
                at=record.at,
                done_at=record.done_at,
                keeps_old=bool(record.flags & _MREMAP_DONTUNMAP) or not record.length,
            )
        elif record.kind == EventKind.EXEC:
            event = Executed(record.tid, record.at)
        else:
            event = CodeMapped(Interval(record.start, record.start + record.length), record.at)
        self._on_event(record.space, event)

    def _copy(self, address: int) -> None:
        head = CopyHeadT.from_address(address)
        registers = address + ctypes.sizeof(CopyHeadT)
        register_bytes = REGISTER_BYTES[platform.machine()]
        memory = registers + register_bytes
        self._on_copy(
            head.space,
            RawCopy(
                site=head.site,
                at=head.at,
                tid=head.tid,
                registers=ctypes.string_at(registers, register_bytes),
                memory=ctypes.string_at(memory, head.size),
                is_cut=bool(head.is_cut),
            ),
        )
