# SPDX-License-Identifier: Apache-2.0
"""glibc's books, read from running programs and compared with what each program says of itself."""

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

from ebpftrace.model import BookedThread, Books, BooksState
from ebpftrace.process.books import read_books
from ebpftrace.process.books.walk import MAX_NODES
from ebpftrace.process.maps import read_maps
from ebpftrace.process.memory import Memory
from ebpftrace.process.sleepers import read_sleepers
from ebpftrace.syscalls import numbers

DEFAULT_CACHE = 40 << 20
READINGS = 1000


BOOKED = [DYNAMIC, STATIC, STATIC_PIE]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("books")


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


def books_of(pid: int) -> Books:
    with Memory(pid) as memory:
        return read_books(pid, read_maps(pid), memory)


def exited(books: Books) -> list[BookedThread]:
    return [thread for thread in books.threads if thread.exited]


def proved(books: Books) -> set[tuple[int, int, int]]:
    """(stack, bytes of it, start routine) of the threads that exited and that nobody joins."""
    return {
        (thread.stack.start, thread.stack.size, thread.start_routine)
        for thread in exited(books)
        if thread.stack is not None and not thread.detached
    }


def told(program: Program) -> set[tuple[int, int, int]]:
    """The same of all threads that the program made, in its own words."""
    return {(fact["start"], fact["length"], fact["routine"]) for fact in program.facts("thread")}


@pytest.mark.parametrize("build", BOOKED, ids=lambda build: build.name)
@pytest.mark.parametrize("kind", ["returns", "exits", "cancelled", "c11", "raw"])
def test_every_end_without_a_join_is_proved(directory: Path, kind: str, build: Build) -> None:
    if build.name != "dynamic" and kind == "cancelled":
        pytest.skip("static glibc needs libgcc_s.so at run time to cancel a thread")
    with ended(compiled(directory, "books_threads", build), kind, 10) as program:
        books = books_of(program.pid)
        assert books.state is BooksState.READ
        assert books.why == ""
        assert len(books.threads) == len(exited(books)) == 10
        assert proved(books) == told(program)
        assert not any(thread.user_stack for thread in books.threads)
        assert books.libc.startswith("glibc 2." if build is DYNAMIC else "static glibc 2.")
        assert program.end() == 0


@pytest.mark.parametrize("count", [1000, 30000])
def test_many(directory: Path, count: int) -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    if 2 * count + 1000 > limit:
        pytest.skip(f"vm.max_map_count is {limit}: {count} stacks with guards do not fit")
    with ended(compiled(directory, "books_threads"), "returns", count, 32768) as program:
        with CountedMemory(program.pid) as memory:
            books = read_books(program.pid, read_maps(program.pid), memory)
        assert proved(books) == told(program)
        assert memory.reads < 100 + 4 * count


@pytest.mark.parametrize("kind", ["joined", "reversed", "detached", "detached-late"])
def test_joined_and_detached_threads_are_not_listed_but_cached(directory: Path, kind: str) -> None:
    with ended(compiled(directory, "books_threads"), kind, 20) as program:
        books = books_of(program.pid)
        assert books.state is BooksState.READ
        assert exited(books) == []
        stacks = {(stack.start, stack.size) for stack in books.stack_cache}
        assert stacks == {(start, size) for start, size, _ in told(program)}
        assert books.stack_cache_bytes == sum(size for _, size in stacks)


def test_joined_late_is_on_the_list_until_then(directory: Path) -> None:
    with Program(compiled(directory, "books_threads"), "late", 20) as program:
        program.go()
        program.wait_for("ended")
        assert proved(books_of(program.pid)) == told(program)
        program.go()
        program.wait_for("done")
        assert exited(books_of(program.pid)) == []


def test_live_threads_are_alive(directory: Path) -> None:
    with ended(compiled(directory, "books_threads"), "live", 20) as program:
        books = books_of(program.pid)
        assert exited(books) == []
        tids = {fact["tid"] for fact in program.facts("thread")}
        assert {thread.tid for thread in books.threads} == tids
        assert not any(thread.detached for thread in books.threads)


def test_live_threads_that_are_detached(directory: Path) -> None:
    with ended(compiled(directory, "books_threads"), "live-detached", 5) as program:
        books = books_of(program.pid)
        assert len(books.threads) == 5
        assert all(thread.detached and not thread.exited for thread in books.threads)


def test_a_detached_thread_that_ends_by_a_bare_exit_stays_on_the_list(directory: Path) -> None:
    with ended(compiled(directory, "books_threads"), "raw-detached", 5) as program:
        books = books_of(program.pid)
        assert len(books.threads) == 5
        assert all(thread.detached and thread.exited for thread in books.threads)


def test_a_thread_that_is_being_joined_is_not_taken_for_detached(directory: Path) -> None:
    with Program(compiled(directory, "books_threads"), "in-turn", 3) as program:
        program.go()
        program.wait_for("ended")
        pid, futex = program.pid, numbers()["futex"]
        eventually(
            lambda: pid in (asleep := read_sleepers([pid])) and asleep[pid].call == futex,
            "the initial thread waits in pthread_join",
        )
        books = books_of(program.pid)
        assert sorted(thread.exited for thread in books.threads) == [False, True, True]
        assert not any(thread.detached for thread in books.threads)


def test_stacks_that_the_application_gave(directory: Path) -> None:
    with ended(compiled(directory, "books_threads"), "user", 10, 200000) as program:
        books = books_of(program.pid)
        assert proved(books) == told(program)
        assert all(thread.user_stack for thread in books.threads)


def test_a_list_with_holes_gives_what_both_its_ends_lead_to(directory: Path) -> None:
    with ended(compiled(directory, "books_threads"), "user-freed", 7) as program:
        books = books_of(program.pid)
        assert "broken" in books.why
        assert len(exited(books)) == 2
        assert proved(books) < told(program)


@pytest.mark.parametrize("build", [STRIPPED, MUSL, MUSL_STATIC], ids=lambda build: build.name)
def test_without_books_they_are_absent_and_said_to_be(directory: Path, build: Build) -> None:
    with ended(compiled(directory, "books_threads", build), "returns", 3) as program:
        books = books_of(program.pid)
        assert books.state is BooksState.ABSENT
        assert books.threads == ()
        assert books.why
        assert "\n" not in books.why
        if build is MUSL:
            assert books.libc == "musl"


def test_the_initial_thread_has_ended(directory: Path) -> None:
    with ended(compiled(directory, "books_threads"), "leader", 5) as program:
        books = books_of(program.pid)
        assert books.state is BooksState.READ
        assert proved(books) == told(program)
        assert len(books.threads) == 6


@pytest.mark.parametrize("kind", ["live", "returns"])
def test_tids_of_another_pid_namespace(directory: Path, kind: str) -> None:
    binary = compiled(directory, "books_threads")
    inside = ("--pid", "--fork", "--kill-child", str(binary), kind)
    with ended(Path("/usr/bin/unshare"), *inside, 5) as program:
        pid = int(Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text())
        books = books_of(pid)
        assert books.state is BooksState.READ
        assert books.why == ""
        if kind == "live":
            assert {thread.tid for thread in books.threads} == {
                fact["tid"] for fact in program.facts("thread")
            }
            assert max(thread.tid for thread in books.threads) < 100
            assert exited(books) == []
        else:
            assert proved(books) == told(program)


def test_a_fork_behind_the_back_of_glibc_proves_nothing(directory: Path) -> None:
    """Its copy of the list names threads that never lived in it, and nothing has cleared their tids."""
    with ended(compiled(directory, "books_threads"), "raw-fork", 4) as program:
        (child,) = (fact["pid"] for fact in program.facts("child"))
        books = books_of(child)
        assert exited(books) == []
        assert books.why == "4 listed threads neither live nor are marked as exited"


def test_a_program_and_a_libc_that_were_deleted_or_replaced(directory: Path) -> None:
    found = subprocess.run(["ldd", compiled(directory, "books_threads")], capture_output=True, check=True)
    libc = next(word for word in found.stdout.decode().split() if word.endswith("/libc.so.6"))
    own = directory / "own"
    own.mkdir()
    shutil.copy(libc, own / "libc.so.6")
    with ended(
        compiled(directory, "books_threads"), "returns", 5, env={"LD_LIBRARY_PATH": str(own)}
    ) as program:
        (own / "new").write_bytes(b"\x7fELF no more")
        (own / "new").rename(own / "libc.so.6")
        assert proved(books_of(program.pid)) == told(program)


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
    with ended(compiled(directory, "books_threads"), "joined", 200, env=environment) as program:
        books = books_of(program.pid)
        assert books.stack_cache_limit == limit
        # glibc drops stacks as soon as the sum exceeds the limit.
        assert books.stack_cache_bytes is not None
        assert limit - (1 << 20) < books.stack_cache_bytes <= limit


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["joined", "detached", "user"])
def test_no_false_proof_while_the_lists_change(directory: Path, kind: str) -> None:
    churners, dead = 2, 50
    with ended(compiled(directory, "books_churn"), kind, churners, dead) as program:
        (routines,) = program.facts("routines")
        vmas = read_maps(program.pid)
        begun = time.monotonic()
        unstable = 0
        with Memory(program.pid) as memory:
            for _ in range(READINGS):
                books = read_books(program.pid, vmas, memory)
                unstable += books.state is not BooksState.READ
                ended_threads = exited(books)
                assert "neither" not in books.why
                if books.state is BooksState.READ:
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
    with ended(compiled(directory, "books_forged"), way) as program:
        mapped = sum(vma.size for vma in read_maps(program.pid))
        with CountedMemory(program.pid) as memory:
            books = read_books(program.pid, read_maps(program.pid), memory)
        stacks = [thread.stack for thread in exited(books) if thread.stack is not None]
        assert memory.reads < MAX_NODES
        assert len(stacks) <= 8
        assert sum(stack.size for stack in stacks) <= mapped
        if way not in ("long", "huge", "moving"):
            assert books.state is BooksState.UNSTABLE
        assert program.end() == 0
