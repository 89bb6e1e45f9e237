"""Registration of threads, on those of this very process: none is missing, none is left that has ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Optional

from ebpftrace.kernel.registration import register
from ebpftrace.process.procfs import task_ids
from ebpftrace.process.tasks import Task, list_tasks

PID = os.getpid()


class Table:
    """Tids that are traced, as the kernel side would have them; ``looks`` are those it was given."""

    def __init__(self, meanwhile: Optional[Callable[[], None]] = None) -> None:
        """``meanwhile`` happens once, while the first thread is added."""
        self.tids: set[int] = set()
        self.looks: list[list[Task]] = []
        self.forgotten: list[int] = []
        self._meanwhile = meanwhile

    def register(self) -> bool:
        return register(find, lambda: set(self.tids), self.add, self.forget)

    def add(self, tasks: Iterable[Task]) -> list[Task]:
        self.looks.append([])
        for task in tasks:
            self.looks[-1].append(task)
            if self._meanwhile is not None:
                self._meanwhile()
                self._meanwhile = None
        new = [task for task in self.looks[-1] if task.id.tid not in self.tids]
        self.tids.update(task.id.tid for task in new)
        return new

    def forget(self, tid: int) -> None:
        self.tids.discard(tid)
        self.forgotten.append(tid)


class Sleeper:
    """A thread that lives until it is told to end."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._stop.wait)
        self._thread.start()

    @property
    def tid(self) -> int:
        assert self._thread.native_id is not None
        return self._thread.native_id

    def end(self) -> None:
        """Returns when the kernel does not list it any more: Python's join is a little earlier."""
        self._stop.set()
        self._thread.join()
        while Path(f"/proc/{PID}/task/{self.tid}").exists():
            os.sched_yield()


@contextmanager
def sleeper() -> Iterator[Sleeper]:
    thread = Sleeper()
    try:
        yield thread
    finally:
        thread.end()


def find() -> dict[int, int]:
    return dict.fromkeys(task_ids(PID), PID)


def test_all_threads_are_added_and_read_once() -> None:
    with ExitStack() as held:
        tids = {held.enter_context(sleeper()).tid for _ in range(20)}
        table = Table()
        assert table.register()
        assert {task.id for task in list_tasks(PID)} <= {task.id for task in table.looks[0]}
        ours = tids | {PID}
        assert ours <= table.tids
        assert not ours.intersection(task.id.tid for look in table.looks[1:] for task in look)
        assert not ours.intersection(table.forgotten)


def test_a_thread_born_unseen_while_others_are_added_is_found() -> None:
    born: list[Sleeper] = []
    table = Table(lambda: born.append(Sleeper()))
    try:
        assert table.register()
        assert born[0].tid in table.tids
        second = {task.id.tid for task in table.looks[1]}
        assert born[0].tid in second
        assert PID not in second
    finally:
        born[0].end()


def test_a_thread_that_ends_before_it_is_added_is_forgotten() -> None:
    thread = Sleeper()
    table = Table()

    def add_late(tasks: Iterable[Task]) -> list[Task]:
        read = list(tasks)
        thread.end()
        return table.add(read)

    assert register(find, lambda: set(table.tids), add_late, table.forget)
    assert thread.tid in table.forgotten
    assert PID in table.tids


def test_a_thread_that_the_kernel_side_has_dropped_does_not_pass_for_known() -> None:
    """Its tid is listed again: another thread has got it since."""
    with sleeper() as thread:
        table = Table()
        assert table.register()
        table.tids.discard(thread.tid)
        assert table.register()
        assert thread.tid in table.tids


def test_threads_that_never_end_to_be_born_are_told() -> None:
    born: list[Sleeper] = []

    def add(tasks: Iterable[Task]) -> list[Task]:
        born.append(Sleeper())
        return list(tasks)

    try:
        assert not register(find, set, add, lambda _: None)
    finally:
        for thread in born:
            thread.end()
