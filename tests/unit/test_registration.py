# SPDX-License-Identifier: Apache-2.0
"""Registration of threads, on those of this very process: none is missing, none is left that has ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Optional

import pytest

from ebpftrace.capture import registration
from ebpftrace.capture.registration import Registered, confirm, preload, register
from ebpftrace.procfs.tasks import Listed, Task, find_task, list_tasks, listed_tasks

PID = os.getpid()
NOBODY: Mapping[Listed, Task] = MappingProxyType({})


class Table:
    """Tids that are traced, as the kernel side would have them; ``readings`` are those it was given."""

    def __init__(self, meanwhile: Optional[Callable[[], None]] = None) -> None:
        """``meanwhile`` happens once, while the first thread is added."""
        self.tids: set[int] = set()
        self.readings: list[list[Task]] = []
        self.forgotten: list[int] = []
        self._meanwhile = meanwhile

    def register(self, preloaded: Mapping[Listed, Task] = NOBODY) -> Registered:
        return register(find, lambda: set(self.tids), self.add, self.forget, preloaded)

    def add(self, tasks: Iterable[Task]) -> list[Task]:
        self.readings.append([])
        for task in tasks:
            self.readings[-1].append(task)
            if self._meanwhile is not None:
                self._meanwhile()
                self._meanwhile = None
        new = [task for task in self.readings[-1] if task.id.tid not in self.tids]
        self.tids.update(task.id.tid for task in new)
        return new

    def forget(self, task: Task) -> None:
        self.tids.discard(task.id.tid)
        self.forgotten.append(task.id.tid)


class Sleeper:
    """A thread that lives until it is asked to end."""

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


def find() -> list[Listed]:
    return listed_tasks(PID)


def test_all_threads_are_added_and_read_once() -> None:
    with ExitStack() as held:
        tids = {held.enter_context(sleeper()).tid for _ in range(20)}
        table = Table()
        assert table.register().complete
        assert {task.id for task in list_tasks(PID)} <= {task.id for task in table.readings[0]}
        ours = tids | {PID}
        assert ours <= table.tids
        assert not ours.intersection(task.id.tid for reading in table.readings[1:] for task in reading)
        assert not ours.intersection(table.forgotten)


def test_a_thread_created_unseen_while_others_are_added_is_found() -> None:
    created: list[Sleeper] = []
    table = Table(lambda: created.append(Sleeper()))
    try:
        assert table.register().complete
        assert created[0].tid in table.tids
        second = {task.id.tid for task in table.readings[1]}
        assert created[0].tid in second
        assert PID not in second
    finally:
        created[0].end()


def test_a_thread_that_ends_before_it_is_added_is_forgotten() -> None:
    thread = Sleeper()
    table = Table()

    def add_late(tasks: Iterable[Task]) -> list[Task]:
        read = list(tasks)
        thread.end()
        return table.add(read)

    assert register(find, lambda: set(table.tids), add_late, table.forget, NOBODY).complete
    assert thread.tid in table.forgotten
    assert PID in table.tids


def test_a_thread_that_the_kernel_side_has_dropped_does_not_pass_for_known() -> None:
    """Its tid is listed again: another thread has got it since."""
    with sleeper() as thread:
        table = Table()
        assert table.register().complete
        table.tids.discard(thread.tid)
        assert table.register().complete
        assert thread.tid in table.tids


def test_who_was_known_is_added_without_another_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the leader: it stays listed after its exit."""
    read: list[int] = []

    def note(tgid: int, tid: int) -> Optional[Task]:
        read.append(tid)
        return find_task(tgid, tid)

    with sleeper() as known_before, sleeper() as leaves:
        preloaded = preload(find())
        leaves.end()
        with sleeper() as started_since, monkeypatch.context() as patched:
            patched.setattr(registration, "find_task", note)
            table = Table()
            assert table.register(preloaded).complete
            assert {known_before.tid, started_since.tid, PID} <= table.tids
            assert leaves.tid not in table.tids
            assert {started_since.tid, PID} <= set(read)
            assert known_before.tid not in read


def test_another_thread_with_the_number_of_one_that_was_known_is_read() -> None:
    with sleeper() as thread:
        (listed,) = (one for one in find() if one.tid == thread.tid)
        former = preload([listed])[listed]._replace(name="former")
        table = Table()
        assert table.register({listed._replace(inode=listed.inode + 1): former}).complete
        assert "former" not in {task.name for task in table.readings[0]}
        table = Table()
        assert table.register({listed: former}).complete
        assert "former" in {task.name for task in table.readings[0]}


def test_each_thread_keeps_its_place_in_the_list_and_none_has_that_of_a_former() -> None:
    with sleeper() as thread:
        before = {one for one in find() if one.tid == thread.tid}
        assert before
        assert before == {one for one in find() if one.tid == thread.tid}
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(sleeper())
        assert not before.intersection(find())


def test_who_had_exited_but_was_still_listed_is_forgotten_later() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        zombie = find_task(child, child)
        assert zombie is not None
        with sleeper() as thread:
            sleeping = find_task(PID, thread.tid)
            assert sleeping is not None
            table = Table()
            table.tids = {thread.tid, child}
            confirm([sleeping, zombie], table.forget)
        assert table.forgotten == [child]
    finally:
        os.waitpid(child, 0)


def test_threads_that_never_end_to_be_created_are_reported() -> None:
    created: list[Sleeper] = []

    def add(tasks: Iterable[Task]) -> list[Task]:
        created.append(Sleeper())
        return list(tasks)

    try:
        assert not register(find, set, add, lambda _: None, NOBODY).complete
    finally:
        for thread in created:
            thread.end()
