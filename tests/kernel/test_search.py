# SPDX-License-Identifier: Apache-2.0
"""What still refers to exited threads and mappings, in running programs that know it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Json, Target, eventually

from benchmarks import searches
from ebpftrace.capture.taskstates import TaskStates
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Interval, Reach, ReadState, Search, Suspect, ThreadLists, Where
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.maps import read_maps
from ebpftrace.search import search, threads
from ebpftrace.search.areas import areas_of
from ebpftrace.search.presence import Presence
from ebpftrace.search.runs import difference, runs_of
from ebpftrace.sessions.process_snapshot import read_thread_lists_of
from ebpftrace.units import PAGE

LENGTH = 64 << 10
INVERTED = (1 << 64) - 1


def lists_of(pid: int) -> ThreadLists:
    return read_thread_lists_of(pid, read_maps(pid))


def suspects_of(thread_lists: ThreadLists) -> dict[int, Suspect]:
    """By handle, the threads that have exited and that nobody has joined."""
    return {
        thread.descriptor: Suspect((thread.stack,), thread.descriptor)
        for thread in thread_lists.threads
        if thread.exited and thread.stack is not None and not thread.detached
    }


def facts_of(program: Target) -> tuple[list[tuple[Json, Suspect]], ThreadLists]:
    """What the program tells of handles and mappings, as suspects, once all those threads have exited."""
    program.run()
    facts = [*program.facts("handle"), *program.facts("mapping")]
    handles = {fact["secret"] ^ INVERTED for fact in facts if fact["event"] == "handle"}
    eventually(lambda: handles <= suspects_of(lists_of(program.pid)).keys(), "all threads have exited")
    thread_lists = lists_of(program.pid)
    by_handle = suspects_of(thread_lists)
    paired = []
    for fact in facts:
        value = fact["secret"] ^ INVERTED
        suspect = mapping_at(value)
        paired.append((fact, by_handle[value] if fact["event"] == "handle" else suspect))
    return paired, thread_lists


WHERE = {
    "data": (Where.GLOBAL, "in_data in search", "in_data+0x8 in search"),
    "bss": (Where.GLOBAL, "in_bss in search", "in_bss+0x8 in search"),
    "packed struct": (Where.GLOBAL, "in_packed+0x4 in search", "in_packed+0x10 in search"),
    "tls of main": (Where.TLS, "", ""),
    "tls of a thread": (Where.TLS, "", ""),
    "frame of main": (Where.STACK, "", ""),
    "frame of a thread": (Where.STACK, "", ""),
    "heap": (Where.HEAP, "", ""),
    "arena": (Where.HEAP, "", ""),
    "large block": (Where.MAPPING, "", ""),
    "mapping": (Where.MAPPING, "", ""),
    "read-only memory": (Where.MAPPING, "", ""),
    "shared memory": (Where.SHARED, "", ""),
    "memfd": (Where.SHARED, "memfd:search", "memfd:search"),
    "sigaltstack": (Where.KERNEL, "", "sigaltstack"),
    "epoll": (Where.KERNEL, "", "epoll"),
    **{name: (Where.REGISTER, name, "") for name in ("rbx", "r12", "r13", "r14", "r15")},
}


def test_every_place_that_counts_and_none_that_does_not() -> None:
    with Target("search") as program:
        paired, thread_lists = facts_of(program)
        found = search(program.pid, [suspect for _, suspect in paired], thread_lists)
        assert found.complete, found.gaps
        assert found.searches == 1, "no thread runs: one pass proves it"
        read = {(fact["event"], fact["place"]): bool(fact["kept"]) for fact, _ in paired}
        seen = {(fact["event"], fact["place"]): not found.reach[suspect].lost for fact, suspect in paired}
        assert seen == read
        for fact, suspect in paired:
            if fact["place"] in WHERE:
                check_holder(found.reach[suspect], fact, program.pid)
        assert program.end() == 0


def test_the_benchmark_of_the_search_runs() -> None:
    measured = searches.measure(searches.Case(1, 10, works=False), 1)
    assert measured.resident_bytes > 1 << 20
    assert measured.passes >= 1
    assert measured.cpu_seconds > 0
    assert measured.most_bytes < 100 << 20, "of the searching process, not of the one that started it"


def check_holder(reach: Reach, fact: Json, pid: int) -> None:
    where, of_handle, of_mapping = WHERE[fact["place"]]
    holder = reach.holders[0]
    expected = of_handle if fact["event"] == "handle" else of_mapping
    assert (holder.where, holder.symbol) == (where, expected), fact
    if where in (Where.STACK, Where.TLS):
        is_main = "main" in fact["place"]
        assert (holder.thread == pid) == is_main
        assert holder.thread_name == ("search" if is_main else "holder")
    assert (holder.address is None) == (where in (Where.REGISTER, Where.KERNEL))


def test_nothing_to_search_for() -> None:
    assert search(1, [], ThreadLists(ReadState.ABSENT)) == Search(complete=True)


class Movers(Target):
    """A program whose threads move handles and pointers without a pause; see movers.c."""

    def __init__(self, handles: int, mappings: int, threads: int, places: int, mib: int) -> None:
        super().__init__("movers", handles, mappings, threads, places, mib)

    def begin(self) -> tuple[list[Suspect], ThreadLists]:
        self.run()
        handles = {fact["secret"] ^ INVERTED for fact in self.facts("handle")}
        eventually(lambda: handles <= suspects_of(lists_of(self.pid)).keys(), "all threads have exited")
        thread_lists = lists_of(self.pid)
        by_handle = suspects_of(thread_lists)
        return [by_handle[handle] for handle in handles] + [
            mapping_at(fact["secret"] ^ INVERTED) for fact in self.facts("mapping")
        ], thread_lists

    def drop(self) -> int:
        """One handle or pointer is thrown away; which."""
        self.run()
        dropped: int = self.facts("dropped")[-1]["secret"] ^ INVERTED
        return dropped


class RegisterMovers(Movers):
    """A program whose threads keep handles in registers only; see register_movers.c."""

    def __init__(self, threads: int) -> None:
        Target.__init__(self, "register_movers", threads)


def mapping_at(start: int) -> Suspect:
    return Suspect((Interval(start, start + LENGTH),))


def key(suspect: Suspect) -> int:
    return suspect.pieces[0].start if suspect.handle is None else suspect.handle


SECONDS = float(os.environ.get("EBPFTRACE_SEARCH_SECONDS", "4"))
"""Of searching a program that moves what is kept; 600 were tried by hand."""


@pytest.mark.parametrize(
    ("handles", "mappings", "threads", "places", "mib"),
    [(12, 8, 4, 64, 0), (1, 0, 1, 8, 0), (2, 2, 4, 200, 100)],
    ids=["many", "one", "few in a large process"],
)
def test_what_moves_without_a_pause_is_never_lost(
    handles: int, mappings: int, threads: int, places: int, mib: int
) -> None:
    with Movers(handles, mappings, threads, places, mib) as program:
        search_again_and_again(program)


def test_what_moves_between_registers_only_is_never_lost() -> None:
    with RegisterMovers(4) as program:
        search_again_and_again(program)


def search_again_and_again(program: Movers) -> None:
    suspects, thread_lists = program.begin()
    until = time.monotonic() + SECONDS
    searches = 0
    while searches < 3 or time.monotonic() < until:
        found = search(program.pid, suspects, thread_lists)
        assert found.reach.keys() == set(suspects)
        assert [hex(key(one)) for one, reach in found.reach.items() if reach.lost] == []
        searches += 1
    print(f"{searches} searches, the last in {found.searches} passes")


@pytest.mark.parametrize("registers", [False, True], ids=["places", "registers only"])
def test_what_is_dropped_is_lost_within_two_searches(registers: bool) -> None:
    with RegisterMovers(2) if registers else Movers(8, 4, 2, 32, 0) as program:
        suspects, thread_lists = program.begin()
        dropped: set[int] = set()
        lost: set[int] = set()
        for _ in range(6):
            dropped.add(program.drop())
            for _ in range(2):
                found = search(program.pid, suspects, thread_lists)
                lost |= {key(one) for one, reach in found.reach.items() if reach.lost}
                assert lost <= dropped
            assert lost == dropped


def test_without_registers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CannotTrace("the kernel lets us read no registers (Operation not permitted)")

    monkeypatch.setattr(threads, "TaskStates", refuse)
    with Target("search") as program:
        paired, thread_lists = facts_of(program)
        found = search(program.pid, [suspect for _, suspect in paired], thread_lists)
        assert not found.complete
        assert "registers were not searched: the kernel lets us read no registers" in found.gaps[0]
        for fact, suspect in paired:
            if fact["place"] not in ("rbx", "r12", "r13", "r14", "r15", "sigaltstack"):
                assert found.reach[suspect].lost != fact["kept"], fact


def test_without_numpy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    found = search(1, [mapping_at(PAGE)], ThreadLists(ReadState.ABSENT))
    assert found.reach == {}
    assert not found.complete
    assert "numpy cannot be imported" in found.gaps[0]


def test_a_process_that_has_exited() -> None:
    with Target("search") as program:
        paired, thread_lists = facts_of(program)
        program.end()
    with pytest.raises(ProcessGone):
        search(program.pid, [suspect for _, suspect in paired], thread_lists)


def test_the_page_map_says_the_same_in_both_ways() -> None:
    with Movers(2, 2, 1, 32, 8) as program:
        program.begin()
        vmas = read_maps(program.pid)
        areas = areas_of(vmas, [])
        everywhere = runs_of([(0, 1 << 47)])
        presence = Presence(program.pid)
        scanned = presence.read_now(areas, everywhere)
        presence._scans = False
        read = presence.read_now(areas, everywhere)
        presence.close()
        assert scanned.pages.size > 8 << 20
        assert difference(scanned.pages, read.pages).pieces == 0
        # Pages of zeroes that were only read, the file can't tell from others.
        assert difference(read.pages, scanned.pages).size <= 64 << 10
        assert scanned.unknown == read.unknown == 0


def test_registers_of_every_thread_of_the_address_space() -> None:
    with Target("search") as program:
        program.run()
        states = TaskStates(program.pid)

        def agree() -> bool:
            """The initial thread may still be on its way into the read that it waits in."""
            found = {
                int(state["tid"]): [
                    int(state["registers"][at]) for at in (states.stack_pointer, states.names.index("rip"))
                ]
                for state in states.read()
            }
            read = {}
            for task in Path(f"/proc/{program.pid}/task").iterdir():
                fields = (task / "syscall").read_text().split()
                read[int(task.name)] = [int(field, 16) for field in fields[-2:]] if len(fields) > 2 else []
            return found == read

        eventually(agree, "registers are those that /proc tells")
        assert not states.read()["running"].any()
        states.close()


@pytest.mark.parametrize("way", ["matches", "near", "pieces", "churn"])
def test_a_hostile_address_space_takes_bounded_time(way: str) -> None:
    mib = 64
    with Target("search_hostile", way, mib) as program:
        program.run()
        suspect = mapping_at(program.facts("mapping")[0]["secret"] ^ INVERTED)
        before = time.process_time()
        found = search(program.pid, [suspect], lists_of(program.pid))
        took = time.process_time() - before
        print(
            f"{way}: {took:.2f} s, {found.searches} passes of {found.bytes_searched >> 20} MiB, {found.gaps}"
        )
        assert took < 10, "ten times what it should take at most"
        if way in ("matches", "near"):
            assert found.reach[suspect].lost == (way == "near")


def test_the_process_gets_no_larger() -> None:
    """Pages that are not in memory are not brought in."""
    with Movers(1, 0, 1, 4, 32) as program:
        suspects, thread_lists = program.begin()
        before = rss(program.pid)
        search(program.pid, suspects, thread_lists)
        assert rss(program.pid) - before < 1 << 20


@pytest.fixture
def swap() -> Iterator[None]:
    """128 MiB of swap, where this machine lets us have some."""
    file = Path(tempfile.mkdtemp(dir="/var/tmp")) / "swap"
    try:
        with file.open("wb") as made:
            for _ in range(128):
                made.write(bytes(1 << 20))
        file.chmod(0o600)
        subprocess.run(["mkswap", file], check=True, capture_output=True)
        swapped = subprocess.run(["swapon", file], check=False, capture_output=True, text=True)
        if swapped.returncode:
            pytest.skip(f"no swap can be had here: {swapped.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["swapoff", file], check=True)
    finally:
        shutil.rmtree(file.parent)


@pytest.mark.usefixtures("swap")
def test_what_is_in_swap_stays_there_and_is_said() -> None:
    with Target("search_hostile", "swapped", 32) as program:
        program.run()
        suspect = mapping_at(program.facts("mapping")[0]["secret"] ^ INVERTED)
        before = in_swap(program.pid)
        assert before > 16 << 20, "the kernel was asked to page out 32 MiB"
        found = search(program.pid, [suspect], lists_of(program.pid))
        # Reading glibc's lists and malloc's heaps may bring in a page.
        assert before - in_swap(program.pid) <= 64 << 10
        assert not found.complete
        # The kernel may have left some pages in memory: then the pointer is found there.
        assert found.reach[suspect].lost == (before >= 32 << 20)
        assert abs(found.unsearched_bytes - before) <= 1 << 20
        assert "in swap and were not searched" in found.gaps[0]


def in_swap(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmSwap:")[2].split()[0]) << 10


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
