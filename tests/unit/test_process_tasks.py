# SPDX-License-Identifier: Apache-2.0
"""Threads, clocks and identity, on this very process and on made-up stat files."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.clock import read_clock
from ebpftrace.procfs.status import max_map_count, pid_max, read_memory_use, read_target_info
from ebpftrace.procfs.target import open_target
from ebpftrace.procfs.tasks import list_tasks, parse_stat

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
REST = b" S 41 1 1 0 -1 4194368 1 0 0 0 0 0 0 0 20 0 %d 0 %d 11059200 369 18446744073709551615\n"


@given(st.binary(max_size=15), st.integers(1, 1 << 22), st.integers(0, 1 << 40))
def test_a_name_of_any_bytes_comes_out_whole(name: bytes, tid: int, ticks: int) -> None:
    task = parse_stat(7, b"%d (%s)" % (tid, name) + REST % (3, ticks))
    assert task.name.encode("utf-8", "surrogateescape") == name
    assert (task.id.tid, task.tgid, task.ppid, task.state, task.group_size) == (tid, 7, 41, "S", 3)


def test_a_thread_that_has_begun_to_exit_is_exiting_in_whatever_state() -> None:
    for flags, state, exiting in ((4194368, b"S", False), (4194372, b"R", True), (4194372, b"Z", True)):
        rest = REST.replace(b" S ", b" %s " % state).replace(b"4194368", b"%d" % flags) % (1, 0)
        assert parse_stat(7, b"9 (a)" + rest).exiting == exiting


def test_names_that_reading_like_the_rest_of_the_line() -> None:
    for name in (b") Z 1 (", b"a) b\n(\x1b[3m", b")", b"", b") S 1 1 1 1 1 1", b"\xff\xfe"):
        task = parse_stat(7, b"9 (%s)" % name + REST % (1, 0))
        assert task.name.encode("utf-8", "surrogateescape") == name
        assert not task.exited


@given(st.binary(max_size=300))
def test_what_is_no_stat_file_is_a_value_error(content: bytes) -> None:
    try:
        parse_stat(1, content)
    except ValueError:
        return


def test_a_thread_is_listed_with_its_start_on_the_monotonic_clock() -> None:
    stop = threading.Event()
    before = time.monotonic_ns()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    after = time.monotonic_ns()
    try:
        tasks = list_tasks(os.getpid())
        again = list_tasks(os.getpid())
    finally:
        stop.set()
        thread.join()
    (task,) = [task for task in tasks if task.id.tid == thread.native_id]
    assert before - 2 * TICK_NS <= task.id.started_at <= after + 2 * TICK_NS
    # Threads that other tests began may end meanwhile.
    assert {task.id for task in tasks} >= {task.id for task in again} >= {task.id, tasks[0].id}
    assert tasks[0].id.tid == os.getpid() == tasks[0].tgid
    assert tasks[0].ppid == os.getppid()


def test_the_clock_turns_monotonic_into_wall_time() -> None:
    clock = read_clock()
    before = time.time_ns()
    wall = clock.wall_ns(time.monotonic_ns())
    assert before - 50_000_000 < wall < time.time_ns() + 50_000_000


def test_the_task_of_this_process() -> None:
    use = read_memory_use(os.getpid())
    assert use.virt >= use.rss > 1 << 20
    before = len(list(Path("/proc/self/task").iterdir()))
    info = read_target_info(os.getpid())
    after = len(list(Path("/proc/self/task").iterdir()))
    assert info.exe == os.readlink("/proc/self/exe")  # noqa: PTH115
    assert info.threads is not None
    assert after <= info.threads <= before  # those that other tests began may end
    assert max_map_count() == int(Path("/proc/sys/vm/max_map_count").read_text())
    assert pid_max() == int(Path("/proc/sys/kernel/pid_max").read_text())


@pytest.mark.parametrize("pid", [0, -1, 1 << 22, 1 << 31, 1 << 64])
def test_there_is_no_such_process(pid: int) -> None:

    with pytest.raises(CannotTrace, match=f"^there is no process {pid}$"):
        open_target(pid)
