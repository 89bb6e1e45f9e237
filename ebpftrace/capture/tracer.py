# SPDX-License-Identifier: Apache-2.0
"""Python's interface to the ledger's BPF programs: add address spaces and threads, read events and tables."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, Optional

from ebpftrace.capture import tables
from ebpftrace.capture.exits import MissedExits
from ebpftrace.capture.kernel_events import (
    KernelEvent,
    Settled,
    decode_copy,
    decode_event,
    decode_image,
)
from ebpftrace.capture.layout import (
    ADDRESS_BITS,
    CALL_EVENT,
    IMAGES,
    MAX_SPACES,
    NAME_BYTES,
    SPACE_SHIFT,
    CallKind,
    LibcKeyT,
    LibcT,
    LibraryT,
    MappingT,
    PythonT,
    RangeT,
    SpaceConfigT,
    SpaceT,
    TaskKeyT,
    TaskT,
    ThreadT,
    WalkT,
    ring_pages,
)
from ebpftrace.capture.loader import Loading
from ebpftrace.capture.ringbuf import Drainer, RingBuffer, record_size, records
from ebpftrace.capture.silent import Silent
from ebpftrace.capture.snapshot import BrkMoves, Snapshot, read_brk_moves, read_snapshots
from ebpftrace.capture.stats import RunTime, recursion_misses, run_time
from ebpftrace.capture.sweeper import Sweeper
from ebpftrace.errors import CannotTrace
from ebpftrace.ledger.events import Evicted
from ebpftrace.ledger.replay import Leftovers
from ebpftrace.model import Interval
from ebpftrace.nptl.final import LibcFile
from ebpftrace.procfs.files import FileKey
from ebpftrace.procfs.tasks import Task
from ebpftrace.units import PAGE
from ebpftrace.unwind.copies import StackCopy
from ebpftrace.vmas import Vmas

_MAX_WAITING_BYTES = 64 << 20
"""Limit of the events, and of the stack copies, that wait in Python; more are lost and counted."""

_MINOR_BITS = 20  # include/linux/kdev_t.h
_NEVER = (1 << 64) - 1
_EVERYWHERE = Interval(0, 1 << ADDRESS_BITS)


class Tracer:
    """The attached programs, tracing some address spaces; a context manager.

    ``on_event(space, event)`` and ``on_copy(space, call, copy)`` are called from ``poll``.
    """

    def __init__(
        self,
        loading: Loading,
        on_event: Callable[[int, KernelEvent], None],
        on_copy: Callable[[int, CallKind, StackCopy], None],
    ) -> None:
        """Wait until the programs are attached; ``loading`` detaches them.  Raises CannotTrace."""
        self._on_event = on_event
        self._on_copy = on_copy
        self._spaces = 0
        self._known: set[int] = set()
        """Address spaces in use."""
        self._followed_from = MAX_SPACES
        self._same: Optional[dict[int, Snapshot]] = None
        self._baseline_at: dict[int, int] = {}
        self._python: dict[int, PythonT] = {}
        self._configs: dict[int, SpaceConfigT] = {}
        installed = loading.wait()
        sizes = loading.sizes
        names = [
            "mappings",
            "threads",
            "exited",
            "sites",
            "spaces",
            "space_configs",
            "failures",
            "libcs",
            "libraries",
            "walks",
        ]
        names += ["numbers", "processes", *(["given"] if sizes.settle_ns else [])]
        self._fds = {name: installed.tables[name] for name in names}
        self._programs = dict(installed.programs)
        self._skipped_before = recursion_misses(self._programs.values())
        events, copies, images = (installed.tables[name] for name in ("events", "copies", "images"))
        self._events = RingBuffer(events, ring_pages(sizes.event_pages, PAGE) * PAGE, _MAX_WAITING_BYTES)
        self._copies = RingBuffer(copies, ring_pages(sizes.copy_pages, PAGE) * PAGE, _MAX_WAITING_BYTES)
        self._images = RingBuffer(images, ring_pages(sizes.image_pages, PAGE) * PAGE, _MAX_WAITING_BYTES)
        # Copies first: the code that a copied stack runs through was sent before the copy.
        self._drainer = Drainer([self._copies, self._images, self._events], [copies, images, events])
        self._sweeper = Sweeper(self._fds, sizes)
        self._missed_exits = MissedExits(self._fds)
        self._silent = Silent(self._fds, sizes.settle_ns) if sizes.settle_ns else None

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._drainer.stop()
        self._events.close()
        self._copies.close()
        self._images.close()

    def add_space(self, pid: int, heap_end: int, code: Sequence[Interval]) -> int:
        """Prepare the address space of process ``pid`` and return its number.

        ``code`` as ``code_ranges`` returned it, perhaps some time ago.
        Raises CannotTrace beyond MAX_SPACES.
        """
        space = self._new_space(SpaceT(brk=heap_end), pid)
        self._write_config(space, code, _NEVER)
        return space

    def add_pending_space(self, pid: int) -> int:
        """Prepare the address space that process ``pid`` will have once it executes a program."""
        space = self._new_space(SpaceT(), pid)
        # The ranges of its code are not known yet: until code_read() every word counts for signatures.
        self._write_config(space, [_EVERYWHERE], _NEVER)
        task_record = TaskT(started_at=time.monotonic_ns(), tid=pid, tgid=pid, space=space, is_thread=1)
        tables.update(
            self._fds["threads"], ctypes.c_uint32(pid), ThreadT(task=task_record, waits_for_exec=1, image=pid)
        )
        return space

    def baseline_read(self, space: int, vmas: Vmas) -> None:
        """Send the time of the baseline and the ranges of code to the BPF programs.

        Until then they send the end of every mapping, because the mapping may be in the baseline.
        """
        self._baseline_at[space] = time.monotonic_ns()
        self.code_read(space, vmas)

    def code_read(self, space: int, vmas: Vmas) -> None:
        """Send the ranges of code to the BPF programs, after libraries were loaded."""
        self._write_config(space, code_ranges(vmas), self._baseline_at[space])

    def python_found(self, space: int, places: Sequence[int]) -> None:
        """Send where CPython keeps its frames, the fields of ``PythonT``, to the BPF programs."""
        python = PythonT(*places)
        if bytes(python) != bytes(self._python.get(space, PythonT())):
            self._python[space] = self._configs[space].python = python
            tables.update(self._fds["space_configs"], ctypes.c_uint32(space), self._configs[space])

    def known_threads(self) -> set[int]:
        """Tids of all that are traced now, in whichever address space."""
        return tables.u32_keys(self._fds["threads"], ThreadT, ThreadT.task.offset + TaskT.exited_at.offset)

    def add_threads(self, space: int, tasks: Iterable[Task]) -> list[Task]:
        """Trace these tasks; return those that the BPF programs did not know before.

        From here on every thread that one of them creates is traced from its start.
        """
        new = []
        record, tid = ThreadT(task=TaskT(space=space, is_thread=1)), ctypes.c_uint32()
        # Existing entries stay: the BPF programs saw these tasks start, and have counted for them.
        insert = tables.inserter(self._fds["threads"], tid, record)
        task_record = record.task
        for task in tasks:
            tid.value = task_record.tid = task.id.tid
            task_record.started_at = _started_at(task)
            task_record.tgid = record.image = task.tgid
            task_record.name = task.name.encode("utf-8", "surrogateescape")[: NAME_BYTES - 1]
            if insert() or self._succeeds_exited(tid, record):
                new.append(task)
        self._missed_exits.threads_added()
        return new

    def _succeeds_exited(self, tid: ctypes.c_uint32, record: ThreadT) -> bool:
        """Replace the entry of an exited task with the same tid; False if that task is alive."""
        former = ThreadT()
        if tables.lookup(self._fds["threads"], tid, former):
            task_record = former.task
            if not task_record.exited_at:
                return False
            tables.update(
                self._fds["exited"],
                TaskKeyT(started_at=task_record.started_at, tid=task_record.tid),
                task_record,
            )
        tables.update(self._fds["threads"], tid, record)
        return True

    def forget_thread(self, task: Task) -> None:
        """Drop a task that exited before it was added, so that its exit is not seen any more.

        A task whose exit was seen stays, as does another one that has its tid by now.
        """
        record, tid = ThreadT(), ctypes.c_uint32(task.id.tid)
        is_known = tables.lookup(self._fds["threads"], tid, record)
        if is_known and record.task.started_at == _started_at(task) and not record.task.exited_at:
            tables.delete(self._fds["threads"], tid)

    def fileno(self) -> int:
        """Becomes readable when many events have come, or an urgent one."""
        return self._drainer.fileno()

    def poll(self) -> None:
        """Handle all events and copies that have come; does not wait."""
        self._drainer.drain()
        copies = list(self._copies.take())  # taken first, handled last: see where the drainer is made
        events = list(self._events.take())
        # Once more: the program of a process was sent before its Settled event.
        self._drainer.drain()
        for piece in self._images.take():
            for record in records(piece):
                self._on_event(*decode_image(record))
        for piece in events:
            for record in records(piece):
                self._event(*decode_event(record))
        for piece in copies:
            for record in records(piece):
                self._on_copy(*decode_copy(record))

    def read(self) -> dict[int, Snapshot]:
        """Read the ledger of every address space.  Poll afterwards: its events then cover the rows."""
        if self._same is not None:
            return self._same
        skipped = recursion_misses(self._programs.values()) - self._skipped_before
        # If the kernel counts the runs that it skips, the count includes the missed exits.
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
        """Reserve the numbers from ``first`` on for address spaces of followed processes."""
        self._followed_from = first
        for space in range(first, MAX_SPACES):
            tables.push(self._fds["numbers"], ctypes.c_uint32(space))

    def processes(self) -> tuple[int, int]:
        """Return the number of processes that were followed, and of those for which the tables were full."""
        fd = self._fds["processes"]
        waiting = self._silent.waiting if self._silent is not None else 0
        return tables.per_cpu_sum(fd, 0), tables.per_cpu_sum(fd, 1) + waiting

    def give_back(self, spaces: Collection[int]) -> None:
        """Delete the entries of address spaces that have ended, so that their numbers can be reused.

        The number is not reused while a process that shared the address space is alive.
        """
        if not spaces:
            return
        living = set()
        for tid, thread in tables.entries(self._fds["threads"], ctypes.c_uint32, ThreadT):
            if thread.task.space in spaces:
                if thread.task.exited_at:
                    tables.delete(self._fds["threads"], ctypes.c_uint32(tid.value))
                else:
                    living.add(thread.task.space)
        for key, task_record in tables.entries(self._fds["exited"], TaskKeyT, TaskT):
            if task_record.space in spaces:
                tables.delete(self._fds["exited"], TaskKeyT(started_at=key.started_at, tid=key.tid))
        for keys, _ in tables.batches(self._fds["mappings"], ctypes.c_uint64, MappingT):
            for row in keys.cast("B").cast("Q"):
                if row >> SPACE_SHIFT in spaces:
                    tables.delete(self._fds["mappings"], ctypes.c_uint64(row))
        if self._silent is not None:
            self._silent.forget(spaces)
        for space in spaces:
            self._known.discard(space)
            self._baseline_at.pop(space, None)
            if space >= self._followed_from and space not in living:
                tables.push(self._fds["numbers"], ctypes.c_uint32(space))

    def crowded(self) -> bool:
        """Whether the BPF maps should be swept.

        Call it often: it rarely reads them (``Sweeper.crowded``).
        """
        return self._sweeper.crowded()

    def find_missed_exits(self) -> None:
        """Find threads whose exit was missed.  Call it often: it rarely reads the tables."""
        self._missed_exits.check()

    def find_silent(self) -> None:
        """Give numbers to followed processes that do not call the programs.  Call it often, as it rarely
        reads the tables.
        """
        if self._silent is None:
            return
        withdrawn = []
        for space, settled in self._silent.find():
            self._known.add(space)
            if settled is None:
                withdrawn.append(space)
            else:
                self._on_event(space, settled)
        self.give_back(withdrawn)

    def sweep(self, space: int, leftovers: Leftovers) -> None:
        """Delete the leftovers from the BPF maps."""
        for row in self._sweeper.sweep(space, leftovers):
            self._on_event(space, Evicted(row))

    def brk_moves_by_site(self) -> dict[int, BrkMoves]:
        """Return how the break was moved, by site; all address spaces together."""
        return read_brk_moves(self._fds["sites"])

    def run_times(self) -> dict[str, RunTime]:
        """Return the run time of each program so far; zeros unless the kernel measures it."""
        return {name: run_time(fd) for name, fd in self._programs.items()}

    def know_libc(self, file: FileKey, libc: LibcFile) -> None:
        """Let the BPF programs recognise this libc wherever it is mapped."""
        text = libc.text
        if text is None:
            return
        try:
            tables.update(self._fds["libcs"], _libc_key(file), _libc_record(libc, text))
        except tables.TableRefused:
            return  # the table is full: the lists at the end of such a process are not read

    def set_libc(self, space: int, file: FileKey, libc: LibcFile, base: int) -> None:
        """Set the libc of an address space; ``base`` is its load address."""
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

    def _write_config(self, space: int, code: Sequence[Interval], baseline_at: int) -> None:
        record = SpaceConfigT(baseline_at=baseline_at, python=self._python.get(space, PythonT()))
        if code:
            record.all_code = RangeT(code[0].start, code[-1].end)
        for index, interval in enumerate(code):
            record.code[index] = RangeT(interval.start, interval.end)
        self._baseline_at[space] = baseline_at
        self._configs[space] = record
        tables.update(self._fds["space_configs"], ctypes.c_uint32(space), record)

    def _event(self, space: int, event: KernelEvent) -> None:
        if isinstance(event, Evicted):
            self._sweeper.evicted(space, event.row)
        elif isinstance(event, Settled):
            self._known.add(space)
        self._on_event(space, event)


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


def _started_at(task: Task) -> int:
    """The start time for the table; after a suspend the computed time can be negative."""
    return max(task.id.started_at, 0)


def code_ranges(vmas: Vmas) -> list[Interval]:
    """Return at most ``IMAGES`` ranges that cover all executable mappings and as little else as possible."""
    code = [
        Interval(start, end)
        for start, end, kind in zip(vmas.starts, vmas.ends, vmas.kinds)
        if "x" in kind.perms
    ]
    gaps = sorted((later.start - earlier.end, later.start) for earlier, later in zip(code, code[1:]))
    # Ranges begin where the widest gaps end.
    begins = {start for _, start in gaps[-(IMAGES - 1) :]}
    ranges: list[Interval] = []
    for interval in code:
        if ranges and interval.start not in begins:
            ranges[-1] = Interval(ranges[-1].start, interval.end)
        else:
            ranges.append(interval)
    return ranges
