# SPDX-License-Identifier: Apache-2.0
"""glibc's thread lists, read from running programs and compared with what each program says of itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Program, eventually
from programs import DYNAMIC, MUSL, MUSL_STATIC, STATIC, STATIC_PIE, STRIPPED, Build, compiled

from ebpftrace.model import ListedThread, ReadState, ThreadLists
from ebpftrace.nptl import read_thread_lists
from ebpftrace.nptl.walk import MAX_NODES
from ebpftrace.procfs.livethreads import read_sleepers
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.memory import Memory
from ebpftrace.syscall_numbers import numbers

DEFAULT_CACHE = 40 << 20
READINGS = 1000


LISTED = [DYNAMIC, STATIC, STATIC_PIE]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


@contextmanager
def ended(binary: Path, *arguments: object, **popen: object) -> Iterator[Program]:
    """The program once its hazard has happened."""
    with Program(binary, *arguments, **popen) as program:
        program.run(patience=240)
        yield program


class CountedMemory(Memory):
    """Memory that counts its reads: what a walk costs, whatever else the machine does."""

    reads = 0

    def _pread(self, size: int, address: int) -> bytes:
        self.reads += 1
        return super()._pread(size, address)


def lists_of(pid: int) -> ThreadLists:
    with Memory(pid) as memory:
        return read_thread_lists(pid, read_maps(pid), memory)


def exited(thread_lists: ThreadLists) -> list[ListedThread]:
    return [thread for thread in thread_lists.threads if thread.exited]


def proved(thread_lists: ThreadLists) -> set[tuple[int, int, int]]:
    """(stack, bytes of it, start routine) of the threads that exited and that nobody joins."""
    return {
        (thread.stack.start, thread.stack.size, thread.start_routine)
        for thread in exited(thread_lists)
        if thread.stack is not None and not thread.detached
    }


def reported(program: Program) -> set[tuple[int, int, int]]:
    """The same of all threads that the program made, in its own words."""
    return {(fact["start"], fact["length"], fact["routine"]) for fact in program.facts("thread")}


@pytest.mark.parametrize("build", LISTED, ids=lambda build: build.name)
@pytest.mark.parametrize("kind", ["returns", "exits", "cancelled", "c11", "raw"])
def test_every_end_without_a_join_is_proved(directory: Path, kind: str, build: Build) -> None:
    if build.name != "dynamic" and kind == "cancelled":
        pytest.skip("static glibc needs libgcc_s.so at run time to cancel a thread")
    with ended(compiled(directory, "lists_threads", build), kind, 10) as program:
        thread_lists = lists_of(program.pid)
        assert thread_lists.state is ReadState.READ
        assert thread_lists.why == ""
        assert len(thread_lists.threads) == len(exited(thread_lists)) == 10
        assert proved(thread_lists) == reported(program)
        assert not any(thread.user_stack for thread in thread_lists.threads)
        assert thread_lists.libc.startswith("glibc 2." if build is DYNAMIC else "static glibc 2.")
        assert program.end() == 0


@pytest.mark.parametrize("count", [1000, 30000])
def test_many(directory: Path, count: int) -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if 2 * count + 1000 > limit:
        pytest.skip(f"vm.max_map_count is {limit}: {count} stacks with guards do not fit")
    with ended(compiled(directory, "lists_threads"), "returns", count, 32768) as program:
        with CountedMemory(program.pid) as memory:
            thread_lists = read_thread_lists(program.pid, read_maps(program.pid), memory)
        assert proved(thread_lists) == reported(program)
        assert memory.reads < 100 + 4 * count


@pytest.mark.parametrize("kind", ["joined", "reversed", "detached", "detached-late"])
def test_joined_and_detached_threads_are_not_listed_but_cached(directory: Path, kind: str) -> None:
    with ended(compiled(directory, "lists_threads"), kind, 20) as program:
        thread_lists = lists_of(program.pid)
        assert thread_lists.state is ReadState.READ
        assert exited(thread_lists) == []
        stacks = {(stack.start, stack.size) for stack in thread_lists.stack_cache}
        assert stacks == {(start, size) for start, size, _ in reported(program)}
        assert thread_lists.stack_cache_bytes == sum(size for _, size in stacks)


def test_joined_late_is_on_the_list_until_then(directory: Path) -> None:
    with Program(compiled(directory, "lists_threads"), "late", 20) as program:
        program.go()
        program.wait_for("ended")
        assert proved(lists_of(program.pid)) == reported(program)
        program.go()
        program.wait_for("done")
        assert exited(lists_of(program.pid)) == []


def test_live_threads_are_alive(directory: Path) -> None:
    with ended(compiled(directory, "lists_threads"), "live", 20) as program:
        thread_lists = lists_of(program.pid)
        assert exited(thread_lists) == []
        tids = {fact["tid"] for fact in program.facts("thread")}
        assert {thread.tid for thread in thread_lists.threads} == tids
        assert not any(thread.detached for thread in thread_lists.threads)


def test_live_threads_that_are_detached(directory: Path) -> None:
    with ended(compiled(directory, "lists_threads"), "live-detached", 5) as program:
        thread_lists = lists_of(program.pid)
        assert len(thread_lists.threads) == 5
        assert all(thread.detached and not thread.exited for thread in thread_lists.threads)


def test_a_detached_thread_that_ends_by_a_bare_exit_stays_on_the_list(directory: Path) -> None:
    with ended(compiled(directory, "lists_threads"), "raw-detached", 5) as program:
        thread_lists = lists_of(program.pid)
        assert len(thread_lists.threads) == 5
        assert all(thread.detached and thread.exited for thread in thread_lists.threads)


def test_a_thread_that_is_being_joined_is_not_taken_for_detached(directory: Path) -> None:
    with Program(compiled(directory, "lists_threads"), "in-turn", 3) as program:
        program.go()
        program.wait_for("ended")
        pid, futex = program.pid, numbers()["futex"]
        eventually(
            lambda: pid in (asleep := read_sleepers([pid])) and asleep[pid].call == futex,
            "the initial thread waits in pthread_join",
        )
        thread_lists = lists_of(program.pid)
        assert sorted(thread.exited for thread in thread_lists.threads) == [False, True, True]
        assert not any(thread.detached for thread in thread_lists.threads)


def test_stacks_that_the_application_gave(directory: Path) -> None:
    with ended(compiled(directory, "lists_threads"), "user", 10, 200000) as program:
        thread_lists = lists_of(program.pid)
        assert proved(thread_lists) == reported(program)
        assert all(thread.user_stack for thread in thread_lists.threads)


def test_a_list_with_holes_gives_what_both_its_ends_lead_to(directory: Path) -> None:
    with ended(compiled(directory, "lists_threads"), "user-freed", 7) as program:
        thread_lists = lists_of(program.pid)
        assert "broken" in thread_lists.why
        assert len(exited(thread_lists)) == 2
        assert proved(thread_lists) < reported(program)


@pytest.mark.parametrize("build", [STRIPPED, MUSL, MUSL_STATIC], ids=lambda build: build.name)
def test_without_lists_they_are_absent_and_said_to_be(directory: Path, build: Build) -> None:
    with ended(compiled(directory, "lists_threads", build), "returns", 3) as program:
        thread_lists = lists_of(program.pid)
        assert thread_lists.state is ReadState.ABSENT
        assert thread_lists.threads == ()
        assert thread_lists.why
        assert "\n" not in thread_lists.why
        if build is MUSL:
            assert thread_lists.libc == "musl"


def test_the_initial_thread_has_ended(directory: Path) -> None:
    with ended(compiled(directory, "lists_threads"), "leader", 5) as program:
        thread_lists = lists_of(program.pid)
        assert thread_lists.state is ReadState.READ
        assert proved(thread_lists) == reported(program)
        assert len(thread_lists.threads) == 6


@pytest.mark.parametrize("kind", ["live", "returns"])
def test_tids_of_another_pid_namespace(directory: Path, kind: str) -> None:
    binary = compiled(directory, "lists_threads")
    inside = ("--pid", "--fork", "--kill-child", str(binary), kind)
    with ended(Path("/usr/bin/unshare"), *inside, 5) as program:
        pid = int(Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text())
        thread_lists = lists_of(pid)
        assert thread_lists.state is ReadState.READ
        assert thread_lists.why == ""
        if kind == "live":
            assert {thread.tid for thread in thread_lists.threads} == {
                fact["tid"] for fact in program.facts("thread")
            }
            assert max(thread.tid for thread in thread_lists.threads) < 100
            assert exited(thread_lists) == []
        else:
            assert proved(thread_lists) == reported(program)


def test_a_fork_behind_the_back_of_glibc_proves_nothing(directory: Path) -> None:
    """Its copy of the list names threads that never lived in it, and nothing has cleared their tids."""
    with ended(compiled(directory, "lists_threads"), "raw-fork", 4) as program:
        (child,) = (fact["pid"] for fact in program.facts("child"))
        thread_lists = lists_of(child)
        assert exited(thread_lists) == []
        assert thread_lists.why == "4 listed threads neither live nor are marked as exited"


def test_a_program_and_a_libc_that_were_deleted_or_replaced(directory: Path) -> None:
    found = subprocess.run(["ldd", compiled(directory, "lists_threads")], capture_output=True, check=True)
    libc = next(word for word in found.stdout.decode().split() if word.endswith("/libc.so.6"))
    own = directory / "own"
    own.mkdir()
    shutil.copy(libc, own / "libc.so.6")
    with ended(
        compiled(directory, "lists_threads"), "returns", 5, env={"LD_LIBRARY_PATH": str(own)}
    ) as program:
        (own / "new").write_bytes(b"\x7fELF no more")
        (own / "new").rename(own / "libc.so.6")
        assert proved(lists_of(program.pid)) == reported(program)


@pytest.mark.parametrize(
    ("tunables", "limit"),
    [
        ("", DEFAULT_CACHE),
        ("glibc.pthread.stack_cache_size=1000000", 1000000),
        ("glibc.malloc.arena_max=2:glibc.pthread.stack_cache_size=0x100000", 0x100000),
    ],
)
def test_limit_of_the_stack_cache(directory: Path, tunables: str, limit: int) -> None:
    environment = {"GLIBC_TUNABLES": tunables} if tunables else {}
    with ended(compiled(directory, "lists_threads"), "joined", 200, env=environment) as program:
        thread_lists = lists_of(program.pid)
        assert thread_lists.stack_cache_limit == limit
        # glibc drops stacks as soon as the sum exceeds the limit.
        assert thread_lists.stack_cache_bytes is not None
        assert limit - (1 << 20) < thread_lists.stack_cache_bytes <= limit


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["joined", "detached", "user"])
def test_no_false_proof_while_the_lists_change(directory: Path, kind: str) -> None:
    churners, dead = 2, 50
    with ended(compiled(directory, "lists_churn"), kind, churners, dead) as program:
        (routines,) = program.facts("routines")
        vmas = read_maps(program.pid)
        begun = time.monotonic()
        unstable = 0
        with Memory(program.pid) as memory:
            for _ in range(READINGS):
                thread_lists = read_thread_lists(program.pid, vmas, memory)
                unstable += thread_lists.state is not ReadState.READ
                ended_threads = exited(thread_lists)
                assert "neither" not in thread_lists.why
                if thread_lists.state is ReadState.READ:
                    assert sum(thread.start_routine == routines["dead"] for thread in ended_threads) == dead
                others = [thread for thread in ended_threads if thread.start_routine != routines["dead"]]
                # A joinable thread is on the list, exited, from its end to its join.
                assert len(others) <= (0 if kind == "detached" else churners)
        seconds = time.monotonic() - begun
        assert program.end() == 0
        (churned,) = program.facts("churned")
        print(f"{kind}: {churned['made'] / seconds:.0f} threads/s, {seconds:.1f} s, unstable {unstable}")
        # How often a walk meets no change is the scheduler's luck; that it may is not.
        assert unstable < READINGS


@pytest.mark.parametrize(
    "way", ["loop", "self", "wild", "odd", "kernel", "zero", "head", "long", "huge", "moving"]
)
def test_forged_lists_end_after_a_bounded_walk(directory: Path, way: str) -> None:
    with ended(compiled(directory, "lists_forged"), way) as program:
        mapped = sum(vma.size for vma in read_maps(program.pid))
        with CountedMemory(program.pid) as memory:
            thread_lists = read_thread_lists(program.pid, read_maps(program.pid), memory)
        stacks = [thread.stack for thread in exited(thread_lists) if thread.stack is not None]
        assert memory.reads < MAX_NODES
        assert len(stacks) <= 8
        assert sum(stack.size for stack in stacks) <= mapped
        if way not in ("long", "huge", "moving"):
            assert thread_lists.state is ReadState.UNSTABLE
        assert program.end() == 0
