# SPDX-License-Identifier: Apache-2.0
"""The threads of an address space at one moment: the used parts of their stacks, and their registers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, Optional, Union, overload

import numpy as np
from numpy.typing import NDArray

from ebpftrace.capture.taskstates import States, TaskStates
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Holder, Where
from ebpftrace.procfs.livethreads import read_live_threads
from ebpftrace.procfs.namespaces import own_pid_namespace
from ebpftrace.search.runs import Addresses

_READINGS_TO_KNOW = 6
"""Readings after which it is known which threads hardly ever wait."""
_KERNELS = (("alternate_stack", "sigaltstack"), ("clear_child_tid", "set_tid_address"))
THREAD_POINTERS = ("fs_base", "tpidr_el0")
"""Names of ``TaskStates.thread_pointer``, which contains the address of a thread's own descriptor."""
_RUNS = ("tid", "started", "voluntary", "involuntary")


class ThreadPlace(NamedTuple):
    """A thread and the addresses of its stack and thread-local storage."""

    tid: int
    """Its number in our own PID namespace; 0 if unknown."""
    inner_tid: int
    """Its number in its own PID namespace, which glibc's lists contain."""
    name: str
    stack_pointer: int
    """0 if unknown."""
    thread_pointer: int
    """The thread's descriptor and thread-local storage are around it; 0 if unknown."""


class Waiting(NamedTuple):
    """A thread that waits in the kernel; equal as long as it has not run."""

    registers: bytes
    """``struct pt_regs`` of its last entry into the kernel."""
    stack_pointer: int
    ran: tuple[int, ...]
    """When it was created, and how often it has left a CPU."""


class Moment(NamedTuple):
    """All threads at one moment."""

    places: Sequence[ThreadPlace]
    unused_below: Addresses
    """Stack pointers below which nothing is in use: one for each thread for which that is known."""
    in_use: Addresses
    """Stack pointers and thread pointers; the stacks that contain them are in use."""
    words: Addresses
    """Registers and what the kernel stores for each thread: one row for each thread, one column a
    register."""
    columns: Sequence[tuple[Where, str]]
    """The kind and name of each column."""
    waiting: Optional[NDArray[np.void]]
    """How often each thread has run; None if one runs now, or if that is unknown."""

    def no_thread_ran_until(self, later: Moment) -> bool:
        """Whether all threads waited from this moment to a later one; False if that is unknown."""
        if self.waiting is None or later.waiting is None or not len(self.waiting):
            return False
        return bool(np.array_equal(self.waiting, later.waiting))

    def holder(self, row: int, column: int) -> Holder:
        """The holder for a word in ``words``."""
        place, (where, what) = self.places[row], self.columns[column]
        return Holder(where, None, what, place.tid or None, place.name)


class Threads:
    """Reads the threads of one address space; must be closed."""

    def __init__(self, pid: int, groups: Sequence[int]) -> None:
        self._pid = pid
        self._groups = groups
        self._states: Optional[TaskStates] = None
        self.no_registers = ""
        """Why registers can't be read; empty if they can."""
        try:
            self._states = TaskStates(pid, groups)
        except CannotTrace as refusal:
            self.no_registers = refusal.what
        self._readings = 0
        self._ran: Counter[int] = Counter()
        self._waited_at: dict[int, int] = {}
        self._own_tids: Optional[dict[int, int]] = None

    def close(self) -> None:
        """Unload the BPF program."""
        if self._states is not None:
            self._states.close()

    def read_now(self) -> Moment:
        """Read all threads now.  Raises ``ProcessGone`` or ``CannotTrace``."""
        if self._states is not None:
            try:
                return self._with_registers(self._states)
            except CannotTrace as refusal:
                self.no_registers = refusal.what
                self._states.close()
                self._states = None
        threads = read_live_threads(self._pid, self._groups)
        places = [
            ThreadPlace(thread.tid, thread.inner_tid, thread.name, thread.stack_pointer or 0, 0)
            for thread in threads
        ]
        pointers = np.array([place.stack_pointer for place in places if place.stack_pointer], np.uint64)
        return Moment(places, pointers, pointers, np.empty((0, 0), np.uint64), (), None)

    def waiting(self, tids: Iterable[int]) -> dict[int, Waiting]:
        """Those of these threads that wait now; none if registers can't be read.

        Raises ``ProcessGone`` or ``CannotTrace``.
        """
        found: dict[int, Waiting] = {}
        if self._states is None:
            return found
        wanted = set(tids)
        states = self._states.read()
        for row, (tid, inner) in enumerate(zip(states["tid"].tolist(), states["inner_tid"].tolist())):
            own = self._own_tid(tid, inner)
            if own in wanted and not states["running"][row]:
                registers = states["registers"][row]
                found[own] = Waiting(
                    registers.tobytes(),
                    int(registers[self._states.stack_pointer]),
                    tuple(int(states[field][row]) for field in _RUNS),
                )
        return found

    def _with_registers(self, source: TaskStates) -> Moment:
        states = source.read()
        registers = states["registers"]
        pointers = registers[:, source.stack_pointer]
        running = states["running"] != 0
        self._readings += 1
        known = [
            pointer
            for pointer in map(self._of_running, states["tid"][running].tolist(), pointers[running].tolist())
            if pointer is not None
        ]
        self._waited_at = dict(zip(states["tid"][~running].tolist(), pointers[~running].tolist()))
        named = [(at, (Where.REGISTER, name)) for at, name in enumerate(source.names) if name]
        columns = [what for _, what in named]
        columns += [(Where.REGISTER, source.thread_pointer), *((Where.KERNEL, what) for _, what in _KERNELS)]
        words = [registers[:, at] for at, _ in named]
        words += [states["thread_pointer"], *(states[field] for field, _ in _KERNELS)]
        return Moment(
            places=_Places(states, pointers, self._own_tid),
            unused_below=np.concatenate((pointers[~running], np.array(known, np.uint64))),
            in_use=np.concatenate((pointers, states["thread_pointer"])),
            words=np.column_stack(words),
            columns=columns,
            waiting=None if running.any() else states[list(_RUNS)],
        )

    def _of_running(self, tid: int, pointer: int) -> Optional[int]:
        """The stack pointer above which the stack of a running thread is in use; None if that is unknown.

        Only the stack pointer at its last entry into the kernel is known, and it may be deeper by now.  Most
        likely it waits again soon, and then the words in use are above where it waits.  If it hardly ever
        waits, its whole stack counts, with whatever earlier calls left there.
        """
        self._ran[tid] += 1
        if self._readings >= _READINGS_TO_KNOW and 2 * self._ran[tid] > self._readings:
            return None
        return min(pointer, self._waited_at.get(tid, pointer))

    def _own_tid(self, tid: int, inner_tid: int) -> int:
        if own_pid_namespace().initial:
            return tid
        if self._own_tids is None:
            self._own_tids = {}
            with suppress(CannotTrace):
                threads = read_live_threads(self._pid, self._groups)
                self._own_tids = {thread.inner_tid: thread.tid for thread in threads}
        return self._own_tids.get(inner_tid, 0)


class _Places(Sequence[ThreadPlace]):
    """Makes each ``ThreadPlace`` when it is used, since each reading may have tens of thousands."""

    def __init__(self, states: States, pointers: Addresses, own_tid: Callable[[int, int], int]) -> None:
        self._states = states
        self._pointers = pointers
        self._own_tid = own_tid

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, row: int) -> ThreadPlace: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[ThreadPlace]: ...

    def __getitem__(self, row: Union[int, slice]) -> Union[ThreadPlace, Sequence[ThreadPlace]]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        state = self._states[row]
        tid, inner = int(state["tid"]), int(state["inner_tid"])
        return ThreadPlace(
            self._own_tid(tid, inner),
            inner,
            state["name"].decode("utf-8", "surrogateescape"),
            int(self._pointers[row]),
            int(state["thread_pointer"]),
        )
